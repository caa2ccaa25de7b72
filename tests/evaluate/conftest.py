"""The fixture `world`, which tests of evaluate and of results share."""

from evaluated_world import world as world
