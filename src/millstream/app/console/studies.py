"""The pages Learning, Features, Recommend, Experiments and Review over an installation."""

from __future__ import annotations

from millstream.app.console.features import FeaturesWatch
from millstream.app.console.learning import LearningWatch
from millstream.app.console.lists import Visiting
from millstream.app.console.reviews import Reviewing
from millstream.app.console.trials import Trials
from millstream.app.installation import Installation
from millstream.console.page import Page
from millstream.console.pages import experiments, features, learning, recommend, review


class Studies:
    """What these pages read, kept up to date by `poll`; a page each, by its name."""

    def __init__(self, at: Installation) -> None:
        self._learning, self._features, self._visiting = LearningWatch(at), FeaturesWatch(at), Visiting(at)
        self._trials = Trials(at)
        self.learning: Page = learning.page(self._learning)
        self.features: Page = features.page(self._features)
        self.recommend: Page = recommend.page(self._visiting)
        self.experiments: Page = experiments.page(self._trials)
        self.review: Page = review.page(Reviewing(at))

    def poll(self) -> None:
        """Take in what is new; a second's worth costs milliseconds."""
        self._learning.poll()
        self._visiting.poll()

    def close(self) -> None:
        """Hang up, and end what goes on."""
        self._features.close()
        self._trials.close()
        self._visiting.close()
