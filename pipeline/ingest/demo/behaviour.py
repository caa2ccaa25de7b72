"""Simulate the demo's users: their sessions over the weeks, what the feed shows in them, and what they click.

A user has one current interest, a leaf of the category tree. The feed shows mostly that leaf; a click may move the
interest along the category's route, over a bridge, or back to a favourite. The next click therefore depends on the
latest clicks and on their direction, which counting pairs cannot see, and on nothing in an item's words.

Shape legend: I items, U users, S sessions, E exposures, R exposures of one round (one for each user who has one more),
F leaves, Y days, P favourite leaves of a user.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipeline.ingest.demo.items import Items, Routes
from pipeline.ingest.demo.scenario import Scenario

START = 1_725_235_200  # Monday 2024-09-02, 00:00 UTC
DAY = 86_400
HOURS = np.array([2, 1, 1, 1, 1, 1, 2, 4, 5, 4, 4, 5, 7, 6, 5, 5, 6, 7, 8, 10, 11, 10, 7, 4])  # sessions by hour of day


class Log(NamedTuple):
    """The log of the platform, sorted by (time, user): one exposure per video shown, clicked or not."""

    user_E: np.ndarray
    item_E: np.ndarray
    timestamp_E: np.ndarray  # int64, seconds since the epoch
    click_E: np.ndarray
    watch_E: np.ndarray  # seconds
    like_E: np.ndarray
    share_E: np.ndarray
    noise_E: np.ndarray  # bool: shown in a noise session; only the simulator knows it, no file holds it
    fits_E: np.ndarray  # bool: of the user's current interest, in no noise session; only the simulator knows it


class Sessions(NamedTuple):
    """The sessions of all users, sorted by (user, start)."""

    user_S: np.ndarray
    start_S: np.ndarray  # int64, seconds since START
    length_S: np.ndarray  # exposures
    noise_S: np.ndarray


def chances(scenario: Scenario, log: Log) -> dict[str, np.ndarray]:
    """Return the chance of a click and of a like by which the simulator drew them, float64 [E] each.

    Whoever knows each user's interest at each moment ranks exposures by these; nothing in the log allows more.
    """
    click_E = np.where(
        log.noise_E, scenario.click_noise, np.where(log.fits_E, scenario.click_interest, scenario.click_other)
    )
    return {"click": click_E, "like": click_E * scenario.like * np.where(log.fits_E, 1.0, 0.5)}


def plan_sessions(scenario: Scenario, rng: np.random.Generator) -> Sessions:
    """Draw when users come, how long they stay, and which sessions are noise."""
    activity_U = rng.gamma(6.0, 1 / 6.0, scenario.users)
    user_S = np.repeat(np.arange(scenario.users), 1 + rng.poisson((scenario.sessions - 1) * activity_U))
    count = len(user_S)
    hour_S = rng.choice(len(HOURS), count, p=HOURS / HOURS.sum())
    start_S = rng.integers(scenario.days, size=count) * DAY + hour_S * 3_600 + rng.integers(3_600, size=count)
    return Sessions(
        user_S=user_S,
        start_S=start_S[np.lexsort((start_S, user_S))],
        length_S=1 + rng.poisson(scenario.exposures - 1, count),
        noise_S=rng.random(count) < scenario.noise_sessions,
    )


def simulate(scenario: Scenario, items: Items, routes: Routes, rng: np.random.Generator) -> Log:
    """Live through all sessions, round by round: round r is the r-th exposure of every user who has so many."""
    sessions = plan_sessions(scenario, rng)
    audience = Audience(scenario, items, routes, rng)
    rounds = [
        audience.live(sessions.user_S[session_R], sessions.start_S[session_R], sessions.noise_S[session_R])
        for session_R in _rounds(sessions)
    ]
    log = Log(*map(np.concatenate, zip(*rounds, strict=True)))
    order_E = np.lexsort((log.user_E, log.timestamp_E))
    return Log(*(column[order_E] for column in log))


def _rounds(sessions: Sessions) -> Iterator[np.ndarray]:
    """Yield the sessions [R] of every user's first exposure, then of every user's second exposure, and so on."""
    # user_S 0 0 1 with length_S 1 2 1 -> session_E 0 1 1 2; user_E 0 0 0 1; round_E 0 1 2 0; yields [0 2], [1], [1]
    session_E = np.repeat(np.arange(len(sessions.user_S)), sessions.length_S)
    user_E = sessions.user_S[session_E]
    round_E = np.arange(len(user_E)) - np.searchsorted(user_E, user_E)
    for rows_R in np.split(np.argsort(round_E, kind="stable"), np.cumsum(np.bincount(round_E))[:-1]):
        yield session_E[rows_R]


class Feed:
    """Draw items in proportion to their popularity of the day, from one leaf or from all."""

    def __init__(self, items: Items):
        self.items = len(items.leaf_I)
        self.edges_F = np.searchsorted(items.leaf_I, np.arange(items.leaf_I[-1] + 2))
        # One running sum over days x items; the items of one leaf on one day are an interval of it.
        self.sums = np.concatenate([[0.0], np.cumsum(items.weight_YI.ravel())])

    def of_leaf(self, day_R: np.ndarray, leaf_R: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw one item of each row's leaf, [R]."""
        return self._draw(day_R, self.edges_F[leaf_R], self.edges_F[leaf_R + 1], rng)

    def of_day(self, day_R: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw one item of the whole catalogue for each row, by the popularity of its day, [R]."""
        return self._draw(day_R, np.zeros_like(day_R), np.full_like(day_R, self.items), rng)

    def _draw(self, day_R: np.ndarray, first_R: np.ndarray, end_R: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        # day 1 of 10 items, items 4 to 6: the interval [14, 17) of the running sum; a point in it falls on one item
        low_R, high_R = day_R * self.items + first_R, day_R * self.items + end_R
        point_R = self.sums[low_R] + rng.random(len(day_R)) * (self.sums[high_R] - self.sums[low_R])
        # Rounding may put a point just outside of its interval, so the position is clipped.
        position_R = np.clip(np.searchsorted(self.sums, point_R, side="right") - 1, low_R, high_R - 1)
        item_R: np.ndarray = position_R % self.items
        return item_R


class Audience:
    """All users at one moment: interest_U (leaf), clock_U (seconds since START) and seen_UI (bool: saw the item)."""

    def __init__(self, scenario: Scenario, items: Items, routes: Routes, rng: np.random.Generator):
        self.scenario = scenario
        self.items = items
        self.routes = routes
        self.rng = rng
        self.feed = Feed(items)
        self.favourites_UP = rng.integers(scenario.leaf_count, size=(scenario.users, scenario.favourites))
        self.interest_U = self.favourites_UP[:, 0].copy()
        self.clock_U = np.zeros(scenario.users, dtype=np.int64)
        self.seen_UI = np.zeros((scenario.users, scenario.items), dtype=bool)

    def live(self, user_R: np.ndarray, start_R: np.ndarray, noise_R: np.ndarray) -> Log:
        """Expose each of these users, who are all different, to one item, in sessions that began at `start_R`."""
        item_R = self._show(user_R, start_R // DAY, noise_R)

        # The platform shows no video twice: an exposure whose item the user has seen is dropped.
        new_R = ~self.seen_UI[user_R, item_R]
        user_R, item_R = user_R[new_R], item_R[new_R]
        start_R, noise_R = start_R[new_R], noise_R[new_R]
        self.seen_UI[user_R, item_R] = True

        # The user's clock stands at the end of the latest video, or at the session's start if that is later.
        fits_R = (self.items.leaf_I[item_R] == self.interest_U[user_R]) & ~noise_R
        click_R, watch_R, like_R, share_R = self._react(item_R, fits_R, noise_R)
        time_R = np.maximum(self.clock_U[user_R], start_R)
        self.clock_U[user_R] = time_R + np.ceil(watch_R).astype(np.int64) + 1
        self._move(user_R[click_R & ~noise_R])
        return Log(user_R, item_R, START + time_R, click_R, watch_R, like_R, share_R, noise_R, fits_R)

    def _show(self, user_R: np.ndarray, day_R: np.ndarray, noise_R: np.ndarray) -> np.ndarray:
        """Choose the item that the feed shows: of the current interest, of those popular today, or any item.

        Noise sessions get any item. Instead of a video that the user has seen comes one that is popular today.
        """
        # A draw below `interest` shows the current interest, one below `trending` what is popular, others anything.
        source_R = np.where(noise_R, 1.0, self.rng.random(len(user_R)))
        interest = self.scenario.feed_interest
        trending = interest + self.scenario.feed_trending
        of_leaf_R = self.feed.of_leaf(day_R, self.interest_U[user_R], self.rng)
        of_day_R = self.feed.of_day(day_R, self.rng)
        anything_R = self.rng.integers(self.scenario.items, size=len(user_R))
        item_R = np.where(source_R < interest, of_leaf_R, np.where(source_R < trending, of_day_R, anything_R))
        return np.where(self.seen_UI[user_R, item_R], of_day_R, item_R)

    def _react(
        self, item_R: np.ndarray, fits_R: np.ndarray, noise_R: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Draw (click, watch seconds, like, share), each [R].

        The chances of the last three depend on the click and on whether the video fits the interest (`fits_R`).
        """
        knobs = self.scenario
        rng = self.rng
        count = len(item_R)
        chance_R = np.where(noise_R, knobs.click_noise, np.where(fits_R, knobs.click_interest, knobs.click_other))
        click_R = rng.random(count) < chance_R
        watched_R = self.items.seconds_I[item_R] * np.where(fits_R, rng.beta(5, 2, count), rng.beta(3, 4, count))
        watch_R = np.where(click_R, watched_R, rng.uniform(0.3, 3.0, count)).round(1)
        keen_R = click_R * np.where(fits_R, 1.0, 0.5)
        return click_R, watch_R, rng.random(count) < knobs.like * keen_R, rng.random(count) < knobs.share * keen_R

    def _move(self, user_R: np.ndarray) -> None:
        """Move the interest of users who clicked: it stays, or goes on by route, by bridge or to a favourite leaf."""
        user_R = user_R[self.rng.random(len(user_R)) < self.scenario.move]
        leaf_R = self.interest_U[user_R]
        way_R = self.rng.random(len(user_R))
        favourite_R = self.favourites_UP[user_R, self.rng.integers(self.scenario.favourites, size=len(user_R))]
        step = self.scenario.route_step
        bridge = step + self.scenario.route_bridge
        self.interest_U[user_R] = np.where(
            way_R < step,
            self.routes.step_F[leaf_R],
            np.where(way_R < bridge, self.routes.bridge_F[leaf_R], favourite_R),
        )
