"""From the log to labels of people to a training set: what is worth a look, what was said of it, and what is exported.

    served, shadow, outcomes, examples ─► scan ─► reasons ─► caps, near-duplicates ─► topic `reviews` ─► queue
                                                                                             labels ─┘     │
    datasets/NAME/VERSION ◄─ people's labels, the gold slice, labels of a teacher that is good enough ◄───┘

Rules of the room:
- What is chosen is a function of the log and of what was chosen before: the same log gives the same queue.
- Nothing here changes a model: it is trained from a dataset by who asks for that.
- The parts are imported by name: `settings` is read wherever an installation is opened, and needs nothing.
"""
