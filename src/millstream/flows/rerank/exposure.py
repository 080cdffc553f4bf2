"""Steps that give positions away: a floor for new items, and ads by auction.

Rules of the room:
- A claim takes only what may stand at its position anyway: it breaks no window.
- What chance decides, the slate's seed decides: the same slate gives the same list.
- Nobody pays more than the own bid, and for an item that nobody sold nobody pays.
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
import numpy as np

from millstream.flows.rerank.slate import Floats, Mask
from millstream.flows.rerank.step import Claim, Page, Step, Work

SLACK = 1e-9
"""A share of positions is a whole number to within this: 0.29 * 100 is 29."""


class Fresh(Step, frozen=True, tag="fresh"):
    """An exposure floor: of the first p positions, share * p are of new items, until these earned their impressions.

    New: younger than `age_s_max`, fewer than `impressions`, and good enough. The floor sinks with what the neediest new
    candidate still needs, so an item slides down the list as it earns. Which of them stands is drawn, by need, and so
    is where the first stands, so that positions are fair. New items that stand by their scores count.
    """

    share: Annotated[float, msgspec.Meta(ge=0.0, le=0.5, description="of the positions that new items get")] = 0.1
    impressions: Annotated[
        int, msgspec.Meta(ge=1, le=10_000_000, description="after which an item is no longer new")
    ] = 200
    quality_least: Annotated[
        float, msgspec.Meta(ge=0.0, description="of column quality; above 0, unknown is not enough")
    ] = 0.0
    age_s_max: Annotated[float, msgspec.Meta(gt=0.0, le=1e10, description="seconds since it was created")] = 604_800.0

    def reads(self) -> tuple[str, ...]:
        return ("created", "impressions", "quality")

    def work(self, page: Page) -> Work | None:
        slate = page.slate
        new = page.alive & (slate.now - slate.column("created") <= self.age_s_max)
        if self.quality_least > 0:
            new &= slate.column("quality") >= self.quality_least
        need = np.where(new, 1.0 - slate.column("impressions") / self.impressions, 0.0)
        np.clip(need, 0.0, 1.0, out=need)
        most = float(need.max(initial=0.0))
        return _Floor(need, self.share * most, page) if self.share and most > 0 else None


class _Floor(Work):
    def __init__(self, need: Floats, share: float, page: Page) -> None:
        self._new, self._share, self._count = need > 0, share, 0
        self._phase = float(page.slate.chances(1)[0])
        # the largest of log(chance) / weight is a draw by weight (Efraimidis and Spirakis, 2006)
        with np.errstate(divide="ignore"):
            self._drawn = np.where(self._new, np.log(page.slate.chances()) / need, -np.inf)

    def claim(self, position: int, allowed: Mask) -> Claim | None:
        if self._count >= math.floor(self._share * (position + 1) + self._phase + SLACK):
            return None
        able = allowed & self._new
        return Claim(int(np.where(able, self._drawn, -np.inf).argmax()), "fresh") if able.any() else None

    def placed(self, position: int, place: int, claim: Claim | None) -> None:
        self._count += bool(self._new[place])


class Ads(Step, frozen=True, tag="ads"):
    """Sells positions, one auction each: the highest eCPM = bid * probability of a click * 1000 stands, and pays for a
    click what it takes to beat the next (generalised second price: Edelman, Ostrovsky and Schwarz, 2007), which is
    another author's where authors are known; the reserve where there is no other. Columns `bid` (for a click, in your
    currency), `probability` (calibrated), `quality`. A bid that is 0, negative or no number is no ad. An item with a
    bid may also stand by its score, unsold. Fact `ads_shown`: how many this user was shown lately."""

    share: Annotated[float, msgspec.Meta(ge=0.0, le=1.0, description="of a page's positions, rounded down")] = 0.2
    page: Annotated[int, msgspec.Meta(ge=1, le=1000, description="positions of a page")] = 20
    first: Annotated[int, msgspec.Meta(ge=1, le=1000, description="position before which no ad stands")] = 3
    spacing: Annotated[int, msgspec.Meta(ge=0, le=1000, description="positions between two ads, at least")] = 4
    user_most: Annotated[int, msgspec.Meta(ge=0, le=100_000, description="ads a user is shown, with `ads_shown`")] = 50
    quality_least: Annotated[
        float, msgspec.Meta(ge=0.0, description="of column quality; above 0, unknown is not enough")
    ] = 0.0
    ecpm_least: Annotated[float, msgspec.Meta(ge=0.0, description="reserve: eCPM below which nothing is sold")] = 0.0

    def reads(self) -> tuple[str, ...]:
        return ("bid", "probability", "quality", "author")

    def work(self, page: Page) -> Work | None:
        slate = page.slate
        bid, chance = slate.column("bid").astype(np.float64), slate.column("probability").astype(np.float64)
        sold = page.alive & (bid > 0) & np.isfinite(bid) & (chance > 0) & (chance <= 1)
        if self.quality_least > 0:
            sold &= slate.column("quality") >= self.quality_least
        ecpm = np.where(sold, bid, 0.0) * np.where(sold, chance, 0.0) * 1000.0
        sold &= (ecpm > 0) & (ecpm >= self.ecpm_least)
        left = self.user_most - slate.facts.get("ads_shown", 0.0)
        return _Auction(self, page, sold, ecpm, left) if left >= 1 and sold.any() else None


class _Auction(Work):
    def __init__(self, ads: Ads, page: Page, sold: Mask, ecpm: Floats, left: float) -> None:
        self._ads, self._page, self._sold, self._ecpm, self._left = ads, page, sold, ecpm, left
        self._authors = page.slate.column("author")
        self._at: list[int] = []  # positions that are sold

    def claim(self, position: int, allowed: Mask) -> Claim | None:
        ads, start = self._ads, position - position % self._ads.page
        if position + 1 < ads.first or len(self._at) + 1 > self._left:
            return None
        if self._at and position - self._at[-1] <= ads.spacing:
            return None
        size = min(ads.page, self._page.length - start)
        if sum(at >= start for at in self._at) + 1 > ads.share * size + SLACK:
            return None
        able = np.where(allowed & self._sold, self._ecpm, 0.0)
        place = int(able.argmax())
        return Claim(place, "ad", self._price(place, able)) if able[place] > 0 else None

    def _price(self, place: int, able: Floats) -> float:
        author = self._authors[place]
        others = able if author < 0 else np.where(self._authors == author, 0.0, able)
        second = float(np.delete(others, place).max(initial=0.0))
        slate = self._page.slate
        bid, chance = float(slate.columns["bid"][place]), float(slate.columns["probability"][place])
        return min(bid, max(second, self._ads.ecpm_least) / (chance * 1000.0))

    def placed(self, position: int, place: int, claim: Claim | None) -> None:
        if claim is not None and claim.price is not None:
            self._at.append(position)
