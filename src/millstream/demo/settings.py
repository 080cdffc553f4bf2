"""What the demo writes into its `millstream.toml`."""

from __future__ import annotations

TOML = """# The demo's installation. `millstream up -c FILE` runs it again.
http_port = {port}

[recommend]
model = "ranker"

[learn]
model = "ranker"
push.push_s = 0.2

[ftrl]
bits = 20
alpha = 0.05

[join]
tasks.like.window_s = {window_s:.6f}
ahead_s = {ahead_s}

[feature_store]
definitions = "features.py"

[features]
set = "ranker"
user = [{{ name = "id" }}, {{ name = "age", bucket = 10 }}, {{ name = "gender" }}, {{ name = "occupation" }}]
item = [{{ name = "id" }}, {{ name = "year", bucket = 10 }}, {{ name = "genres", places = 6 }}]
crosses = [
    "user.id*item.genres", "user.id*item.year", "user.age*item.id", "user.gender*item.id", "set.history*item.id",
]
"""
CONSOLE = """
[console]
on = true
port = {port}
"""
LISTS = """
[catalogue]
tags = "genres"

[recall]
every_s = 20.0

[recommend.placements.home]
n = 10
candidates = 30  # few, so that much of what is ranked goes by the visitor
filters = { done = ["like"] }
rank_ms = 200.0
paths.popular = { quota = 30, deadline_ms = 50.0 }
paths.newest = { quota = 10, deadline_ms = 50.0 }
paths.similar = { quota = 60, deadline_ms = 50.0 }
paths.tags = { quota = 60, deadline_ms = 50.0 }
paths.item_cf = { quota = 30, deadline_ms = 50.0 }
paths.user_cf = { quota = 20, deadline_ms = 50.0 }
paths.factors = { quota = 40, deadline_ms = 50.0 }

# Two policies of order: what the ranker says; or not too much of one category, and one place in ten for films that few
# were shown.
[recommend.placements.home.arms.plain]
share = 0.5

[recommend.placements.home.arms.calm]
share = 0.5

[[recommend.placements.home.arms.calm.rerank]]
step = "window"
by = "category"
most = 2
window = 5

[[recommend.placements.home.arms.calm.rerank]]
step = "fresh"
share = 0.1
impressions = 20
age_s_max = 1e10

# Which of the two is liked more: `millstream experiment order -c FILE`, and the console's page Experiments.
[experiments.order]
placement = "home"
metric = "like"
"""
