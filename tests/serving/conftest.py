"""The fixture `world`, which tests of evaluate, results and serving share."""

from evaluated_world import world as world
