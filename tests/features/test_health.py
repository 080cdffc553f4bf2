"""Rows are read again as serving reads them: what is not as it should be is counted, said and put right."""

import random

import numpy as np
from test_pipeline import FEATURES, World, assert_as_recomputed, settle

from millstream.features import FeatureSet, Transform
from millstream.features.health import Health
from millstream.features.pipeline import CHECK_S
from millstream.meter import Meter


def counted(meter):
    return {name: meter.counter(f"millstream_feature_rows_{name}_total", "", {"set": "test"}).value
            for name in ("checked", "wrong")}  # fmt: skip


def test_sound_rows_pass_and_their_columns_are_told(tmp_path):
    world = World(tmp_path)
    pipeline = world.pipeline()
    world.do(200)
    settle(pipeline)
    meter = Meter()
    wrong = Health(FEATURES, meter, random.Random(1)).look(pipeline.state, pipeline._stores, pipeline._at)
    assert all(len(places) == 0 for places in wrong.values())
    assert counted(meter)["checked"] > 5 and counted(meter)["wrong"] == 0
    shares = {name: meter.gauge("millstream_feature_missing_share", "", {"set": "test", "feature": name}).value
              for name in ("likes", "price", "history_2")}  # fmt: skip
    assert shares["likes"] == 0.0 and 0.0 <= shares["price"] < 1.0 and shares["history_2"] > 0.0
    spread = [meter.gauge("millstream_feature_quantile", "", {"set": "test", "feature": "likes", "q": q}).value
              for q in ("0.1", "0.5", "0.9")]  # fmt: skip
    assert spread == sorted(spread) and spread[2] > 0
    pipeline.close()


def broken(columns):
    raise ZeroDivisionError("no price")


def test_a_transform_that_fails_is_said_once_and_stops_nothing(tmp_path, caplog):
    features = FeatureSet(
        name="test",
        features=(*FEATURES.features, Transform(name="odd", function=broken, inputs=("likes",), datatype="FP64")),
    )
    world = World(tmp_path)
    pipeline = world.pipeline(features)
    world.do(100)
    settle(pipeline)
    for _ in range(2):
        world.clock.advance(CHECK_S)
        pipeline.step()
    assert caplog.text.count("its columns cannot be looked at: feature odd failed: ZeroDivisionError: no price") == 1
    pipeline.close()


def test_a_row_that_somebody_else_wrote_is_found_said_and_written_again(tmp_path, caplog):
    world = World(tmp_path)
    pipeline = world.pipeline()
    world.do(200)
    settle(pipeline)
    store, table = pipeline._stores["user"], pipeline.state.entities["user"]
    store.put(table.places.keys[:1], np.full((1, store.width), 7, np.uint8), pipeline._at)
    world.clock.advance(CHECK_S)
    pipeline.step()
    assert "1 of" in caplog.text and "user rows are not what their state says" in caplog.text
    pipeline.step()
    assert_as_recomputed(world, pipeline)
    pipeline.close()
