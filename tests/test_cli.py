"""Every verb as a person types it: results on stdout, words on stderr, exit codes that scripts can trust."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import msgspec
import numpy as np
import pytest

import onnx_models
from millstream.cli import main
from millstream.clock import FakeClock
from millstream.features import Column, Definition
from millstream.meter import Meter
from millstream.models.manifest import Manifest
from millstream.models.online import Ftrl
from millstream.models.online import Settings as FtrlSettings
from millstream.models.repository import Repository
from millstream.stream import Log, encode
from millstream.stream.audit import Acknowledged
from millstream.stream.operator import Step
from millstream.types import Outcome
from millstream.watch.canary.guard import Guards

VERBS = [
    [], ["capacity"], ["report"], ["experiment"], ["demo"], ["serve"], ["up"], ["init"], ["models"], ["recommend"],
    ["train"], *(["train", one] for one in ("offline", "status", "pause", "resume", "rollback")),
    *(["models", one] for one in ("list", "verify", "add", "show", "remove", "pack")),
    ["curate"], *(["curate", one] for one in ("fill", "list", "label", "export", "datasets")),
    ["traffic"],
    *(["traffic", one] for one in ("show", "promote", "rollback", "split", "canary", "shadow",
      "history", "comparison")),
    ["log"], *(["log", one] for one in ("list", "tail", "verify", "audit", "export", "sql", "import")),
    ["doctor"], ["trace"], ["console"],
    ["watch"], *(["watch", one] for one in ("alerts", "rules", "quantities", "replay", "undo")),
    *(["watch", one] for one in ("levels", "triangle", "export")),
    ["features"], *(["features", one] for one in ("list", "show", "diff", "sql", "get", "verify", "materialise")),
    ["features", "export"], ["features", "dag"],
    ["backup"], ["restore"], ["forget"], ["simulate"], ["speech"],
    *(["speech", one] for one in ("fetch", "enrol", "unenrol", "voices", "capacity", "demo")), ["transcribe"],
    ["keys"], *(["keys", one] for one in ("new", "list", "revoke")),
]  # fmt: skip
TOML = """
http_port = 0
[learn]
model = "ranker"
[ftrl]
bits = 10
[features]
user = [{ name = "id" }]
item = [{ name = "id" }]
"""
FEATURES = Definition(user=(Column("id"),), item=(Column("id"),))  # those of TOML
ROWS = "user,item,at,rating\n1,a,100,5\n2,b,101,2\n1,b,102,4\n"
MAP = ["--map", "user=user", "item=item", "event_time=at", "like=rating>=4"]


@pytest.fixture
def call(capsys):
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run(*argv):
        capsys.readouterr()
        code = 0
        try:
            main([str(one) for one in argv])
        except SystemExit as end:
            if isinstance(end.code, str):  # as the interpreter does it
                print(end.code, file=sys.stderr)
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


@pytest.fixture
def result(call):
    """The result of a command that must succeed, from the last line of its stdout."""

    def run(*argv):
        code, out, err = call(*argv, "--json")
        assert code == 0, err
        assert out.endswith("\n") and out.count("\n") == 1, "the result is one line, and nothing else"
        return json.loads(out)

    return run


@pytest.fixture
def refused(call):
    """What a command that must fail says, as one sentence."""

    def run(*argv):
        code, out, err = call(*argv)
        assert (code, out) == (1, "")
        assert err.startswith("millstream: ") and "Traceback" not in err
        return err

    return run


def process(*argv, **environment):
    command = [sys.executable, "-m", "millstream", *map(str, argv)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )


def repository(folder) -> Repository:
    made = Repository(folder / "models")
    for _ in range(3):
        manifest = Manifest(format="ftrl", file="model.ftrl", features=FEATURES.hash)
        made.put("ranker", manifest, {"model.ftrl": Ftrl(FtrlSettings(bits=10), 2).dump()})
    return made


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_help(call, verb):
    code, out, _ = call(*verb, "--help")
    assert code == 0 and " ".join(["usage: millstream", *verb]) in out


def test_every_verb_is_known_here(call):
    """A verb that is added belongs in VERBS."""
    for group in ([], ["models"], ["features"], ["traffic"], ["curate"], ["watch"], ["log"], ["keys"]):
        listed = call(*group, "--help")[1].split("VERB", 1)[1].split("positional", 1)[-1]
        names = {line.split()[0] for line in listed.splitlines() if line.startswith("    ") and line[4] != " "}
        assert {verb[len(group)] for verb in VERBS if verb[: len(group)] == group and len(verb) == len(group) + 1} == {
            name for name in names if not name.startswith("-") and name != "VERB"
        }


def test_the_version_is_told(call):
    code, out, _ = call("--version")
    assert code == 0 and out.startswith("millstream ")


@pytest.mark.parametrize(
    "argv",
    [
        [], ["nonsense"], ["models"], ["traffic", "promote"], ["train"], ["serve"],
        ["serve", "x", "--http-port", "70000"], ["serve", "x", "--http-port", "x"],
        ["demo", "--data", "nothing"], ["demo", "--rate", "0"], ["demo", "--seconds", "-1"],
        ["up", "-c", "x", "--role", "king"], ["log", "tail", "x", "t", "-n", "0"], ["log", "audit", "x"],
        ["log", "import", "x", "-c", "y"], ["train", "rollback", "-c", "x", "--to", "yesterday"],
        ["log", "audit", "x", "--ledger", "y", "--window", "nan"],
        *(["traffic", "canary", "x", "m", "2", "--share", share] for share in ("1.5", "-0.1", "nan")),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_usage_error_exits_2(call, argv):
    code, out, err = call(*argv)
    assert (code, out) == (2, "") and "usage: millstream" in err


def serving(child) -> str:
    for line in child.stderr:
        if "serving at " in line:
            return line.split("serving at ")[1].strip()
    raise AssertionError(f"it never served; exit code {child.wait()}")


def ask(url: str, body=None):
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.status, json.loads(answer.read() or b"null")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_file_is_served_until_a_signal_ends_it(tmp_path, number):
    file = onnx_models.linear(tmp_path / "double.onnx", np.array([[2.0]]))
    child = process("serve", file, "--http-port", "0")
    url = serving(child)
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [3, 1], "data": [1, 2, 3]}]}
    status, answer = ask(f"{url}/v2/models/double/infer", body)
    assert (status, answer["outputs"][0]["data"]) == (200, [2, 4, 6])
    child.send_signal(number)
    out, err = child.communicate(timeout=20)
    assert child.returncode == 0 and out == "" and "Traceback" not in err


def test_a_port_that_is_taken_is_a_sentence(tmp_path):
    file = onnx_models.linear(tmp_path / "double.onnx", np.array([[2.0]]))
    (tmp_path / "millstream.toml").write_text(TOML)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (tmp_path / "millstream.toml").write_text(TOML.replace("http_port = 0", f"http_port = {port}"))
        for argv in (
            ["serve", file, "--http-port", port],
            ["up", "-c", tmp_path / "millstream.toml", "--role", "serve"],
        ):
            child = process(*argv)
            _, err = child.communicate(timeout=30)
            last = err.strip().splitlines()[-1]
            assert child.returncode == 1 and "Traceback" not in err
            assert last.startswith(
                f"millstream: cannot listen on 127.0.0.1:{port} (HTTP): Address already in use; free it"
            )


def test_a_role_serves_ranks_and_takes_outcomes_until_sigterm(tmp_path):
    (tmp_path / "millstream.toml").write_text(TOML)
    repository(tmp_path)
    child = process("up", "-c", tmp_path / "millstream.toml", "--role", "serve")
    url = serving(child)
    status, ranked = ask(f"{url}/v1/recommend", {"id": "q", "user": "u", "candidates": ["a", "b"]})
    assert status == 200 and len(ranked["items"]) == 2
    status, answer = ask(f"{url}/v1/outcomes", {"request": "q", "item": "a", "kind": "impression"})
    assert (status, answer) == (200, {"accepted": 1})
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=20)
    assert child.returncode == 0 and "Traceback" not in err


@pytest.mark.parametrize(("content", "words"), [(b"not a model", "broken"), (None, "no such path"), (b"", "broken")])
def test_what_cannot_be_served_is_a_sentence(tmp_path, refused, content, words):
    file = tmp_path / "broken.onnx"
    if content is not None:
        file.write_bytes(content)
    assert words in refused("serve", file, "--http-port", "0")


def test_models_are_listed_and_verified(tmp_path, result, refused, call):
    made = repository(tmp_path)
    listed = result("models", "list", made.root)
    assert [(one["version"], one["role"], one["format"]) for one in listed] == [
        ("1", "-", "ftrl"),
        ("2", "-", "ftrl"),
        ("3", "live", "ftrl"),
    ]
    assert result("models", "verify", made.root) == [
        {"model": "ranker", "version": str(n), "format": "ftrl"} for n in (1, 2, 3)
    ]
    assert "version 3" in call("models", "list", made.root)[1].splitlines()[2]
    file = made.folder("ranker", "2") / "model.ftrl"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert "expected sha256:" in refused("models", "verify", made.root)
    file.unlink()
    assert "is gone" in refused("models", "verify", made.root)
    assert "no such path" in refused("models", "list", tmp_path / "nowhere")


def test_json_may_stand_before_the_last_verb_too(tmp_path, call):
    made = repository(tmp_path)
    assert json.loads(call("models", "--json", "list", made.root)[1])
    assert json.loads(call("models", "list", "--json", made.root)[1])


def test_traffic_is_shown_and_changed(tmp_path, result, call):
    root = repository(tmp_path).root

    def traffic(verb, *rest):
        return result("traffic", verb, root, "ranker", *rest)

    assert traffic("show")["live"] == "3"
    made = traffic("promote", "2", "--who", "me", "--why", "it is better")
    assert made == {"version": 1, "live": "2", "who": "me", "why": "it is better", "when": made["when"]}
    assert traffic("promote", "1")["live"] == "1" and traffic("promote", "2")["live"] == "2"
    assert traffic("split", "1=0.9", "2=0.1", "--sticky-by", "request")["split"] == {"1": 0.9, "2": 0.1}
    assert traffic("canary", "3", "--share", "0.2")["canary"] == {"version": "3", "share": 0.2}
    assert "canary" not in traffic("canary", "3", "--share", "0")
    assert traffic("shadow", "1", "3")["shadow"] == ["1", "3"]
    assert "shadow" not in traffic("shadow")
    back = traffic("rollback")
    assert (back["live"], back["pin"], "split" in back) == ("1", "1", False)
    assert (traffic("rollback", "--to", "3")["live"], traffic("show")["why"]) == ("3", "traffic rollback")
    assert "pin" not in traffic("promote", "2")
    assert "live 2" in call("traffic", "show", root, "ranker")[1]


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        (["promote", "9"], "live names version 9, which does not exist (there are: 1, 2, 3)"),
        (["rollback", "--to", "9"], "version 9"),
        (["split", "1=many"], "write VERSION=WEIGHT"),
        (["split", "1"], "write VERSION=WEIGHT"),
        (["split", "1=-1"], "split"),
        (["split", "1=nan"], "split"),
        (["promote", "1", "--who", "\x1b[2J"], "write plain text on one line"),
        (["shadow", "9"], "version 9"),
    ],
)
def test_traffic_that_cannot_be_is_refused_and_changes_nothing(tmp_path, refused, rest, words):
    made = repository(tmp_path)
    verb, *more = rest
    assert words in refused("traffic", verb, made.root, "ranker", *more)
    assert not (made.root / "ranker" / "policy.toml").exists()


def test_a_guard_is_asked_for_by_itself_or_by_one_of_its_bounds(tmp_path, result, refused):
    root = repository(tmp_path).root

    def canary(*options):
        return result("traffic", "canary", root, "ranker", "2", *options)["canary"].get("guard")

    usual = {"errors": 0.005, "p99": 1.5, "drift": 0.1, "requests_min": 200, "requests": 10000, "promote": True}
    assert canary() is None
    assert canary("--guard") == usual
    assert canary("--drift", "0", "--no-promote") == usual | {"drift": 0.0, "promote": False}
    bounds = ("--errors", "0.02", "--p99", "2", "--requests-min", "50", "--requests", "500")
    asked = {"errors": 0.02, "p99": 2.0, "requests_min": 50, "requests": 500}
    assert canary("--guard", *bounds) == usual | asked
    for wrong, words in ((("--p99", "0.5"), "from 1"), (("--errors", "2"), "errors"), (("--requests", "9"), "200")):
        assert words in refused("traffic", "canary", root, "ranker", "2", *wrong)
    assert result("traffic", "show", root, "ranker")["version"] == 4


def test_a_change_decided_on_an_older_policy_is_refused_and_the_history_says_who_was_faster(tmp_path, result, refused):
    root = repository(tmp_path).root
    result("traffic", "promote", root, "ranker", "2", "--policy", "0", "--who", "ann", "--why", "it is better")
    said = refused("traffic", "promote", root, "ranker", "3", "--policy", "0")
    assert "the policy of ranker is 1 by now, not 0: ann was faster (it is better; live = 2)" in said
    history = result("traffic", "history", root, "ranker")
    assert [(one["version"], one["live"], one["who"]) for one in history] == [(1, "2", "ann")]
    result("traffic", "promote", root, "ranker", "3")
    last = result("traffic", "history", root, "ranker", "-n", "1")
    assert [one["version"] for one in last] == [2] and last[0]["when"].endswith("Z")


def test_what_a_guard_said_is_shown_with_the_policy(tmp_path, result):
    made = repository(tmp_path)
    result("traffic", "canary", made.root, "ranker", "2", "--guard")
    policies = {"ranker": made.policy("ranker")}
    guards = Guards(made, Meter(), FakeClock(), lambda: policies)
    guards.look(policies)
    guards.close()
    assert result("traffic", "show", made.root, "ranker")["guard"] == "canary 2: watched from now on"


def test_traffic_of_what_is_not_there(tmp_path, refused):
    made = repository(tmp_path)
    assert "no model 'nobody'" in refused("traffic", "show", made.root, "nobody")
    made.change_policy("ranker", lambda p: msgspec.structs.replace(p, live="1"), "me", "test")
    assert "no version of ranker was live before 1" in refused("traffic", "rollback", made.root, "ranker")
    (made.root / "ranker" / "policy.toml").write_text("live = 1\nlife = 2\n")
    assert "life" in refused("traffic", "show", made.root, "ranker")
    assert "life" in refused("traffic", "promote", made.root, "ranker", "2")


def a_log(folder, count=5):
    log = Log(folder, FakeClock())
    writer = log.writer("outcomes")
    for number in range(count):
        outcome = Outcome(request=f"r{number}", item="i", kind="like", event_time=float(number))
        writer.append(b"", encode(outcome))
    log.close()
    return folder


def test_a_log_is_listed_tailed_and_verified(tmp_path, result, refused, call):
    folder = a_log(tmp_path / "log")
    assert result("log", "list", folder) == [{"topic": "outcomes", "partitions": 1, "records": 5}]
    assert [one["request"] for one in result("log", "tail", folder, "outcomes", "-n", "2")] == ["r3", "r4"]
    assert len(result("log", "tail", folder, "outcomes")) == 5
    sound = result("log", "verify", folder)
    assert sound["sound"] and sound["topics"][0]["records"] == 5
    assert "no topic 'nothing'; there are: outcomes" in refused("log", "tail", folder, "nothing")
    assert "no topic 'nothing'" in refused("log", "verify", folder, "nothing")
    assert "no such folder" in refused("log", "list", tmp_path / "nowhere")
    segment = next(folder.rglob("*.seg"))
    content = bytearray(segment.read_bytes())
    content[60] ^= 1
    segment.write_bytes(content)
    code, out, _ = call("log", "verify", folder, "--json")
    assert code == 1 and json.loads(out)["sound"] is False
    assert "restore this segment" in refused("log", "tail", folder, "outcomes")


def test_a_log_is_audited_and_the_exit_code_says_whether_it_is_sound(tmp_path, result, refused, call):
    folder, ledger = a_log(tmp_path / "log"), tmp_path / "ledger"
    ledger.write_bytes(msgspec.json.encode(Acknowledged("r1/i/like", 1.0)) + b"\n")
    found = result("log", "audit", folder, "--ledger", ledger)
    assert (found["sound"], found["acknowledged"], found["waiting"]) == (True, 1, 1)
    ledger.write_bytes(msgspec.json.encode(Acknowledged("never sent", 1.0)) + b"\n")
    code, out, _ = call("log", "audit", folder, "--ledger", ledger, "--json")
    assert code == 1 and json.loads(out)["lost_first"] == ["never sent"]
    ledger.write_bytes(b"nonsense\n\n")
    assert "ledger line 1" in refused("log", "audit", folder, "--ledger", ledger)
    assert "No such file" in refused("log", "audit", folder, "--ledger", tmp_path / "none")


def test_an_audit_takes_the_windows_of_the_installation_and_says_which(tmp_path, result, call):
    """An impression of 60 s ago that nobody has judged: on its way where windows are 90 s, lost where they are 30 s.
    The last outcome's clock runs 20 s ahead, as far as the installation lets it move time."""
    toml, ledger, clock = tmp_path / "millstream.toml", tmp_path / "ledger", FakeClock(1000.0)
    ledger.write_bytes(msgspec.json.encode(Acknowledged("r/i/impression", 960.0)) + b"\n")
    with Log(tmp_path / "log", clock) as log:
        to_outcomes, to_examples = log.writer("outcomes"), log.writer("examples")
        to_outcomes.append(b"", encode(Outcome(request="r", item="i", kind="impression", event_time=960.0)))
        to_outcomes.append(b"", encode(Outcome(kind="watermark", event_time=1020.0)))
        step = Step(1, 0.0, 0.0, {"outcomes": {0: 2}})
        to_examples.append_frame([], meta=msgspec.msgpack.encode(step))

    def audited(where, *more):
        code, out, _ = call("log", "audit", where, "--ledger", ledger, *more, "--json")
        found = json.loads(out)
        assert (code == 0) == found["sound"] == (found["lost"] == 0)
        return found["lost"], found["window_s"], found["window_by"].partition(" ")[0]

    toml.write_text(TOML + "[join]\nahead_s = 20.0\n[join.tasks.bought]\nwindow_s = 90.0\n")
    assert audited(toml) == (0, 90.0, "millstream.toml")
    assert audited(toml, "--window", "50") == (1, 50.0, "--window")
    assert audited(tmp_path / "log") == (1, 30.0, "nobody")
    toml.write_text(TOML + "[join]\nahead_s = 5.0\n[join.tasks.bought]\nwindow_s = 50.0\n")
    assert audited(toml) == (0, 50.0, "millstream.toml"), "time stands at 1005: this window ends at 1010"


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    folder = a_log(tmp_path / "log", 3000)
    child = process("log", "tail", folder, "outcomes", "-n", "3000")
    child.stdout.readline()
    child.stdout.close()
    assert (child.wait(60), child.stderr.read()) == (0, "")
    child.stderr.close()


def test_the_join_is_printed_for_flink_and_what_it_reads_is_exported(tmp_path, result, refused, call):
    folder, toml = a_log(tmp_path / "log"), tmp_path / "millstream.toml"
    toml.write_text(TOML + "[join.tasks.bought]\nwindow_s = 90.0\n")
    to = tmp_path / "rows.json"
    assert result("log", "export", folder, "outcomes", "--to", to) == {"topic": "outcomes", "rows": 5}
    rows = [json.loads(line) for line in to.read_text().splitlines()]
    assert [one["request"] for one in rows] == ["r0", "r1", "r2", "r3", "r4"] and rows[0]["arrival"] > 0
    code, out, _ = call("log", "sql", "-c", toml, "--kafka", "broker:9092")
    assert code == 0 and "CREATE TEMPORARY TABLE `outcomes_90s`" in out and out.count("'broker:9092'") == 5
    assert result("log", "sql", "-c", toml)["sql"].count("'FILL IN'") == 6  # one is the folder of checkpoints
    toml.write_text(TOML + "[join.tasks.bought]\nwindow_s = 9.0\ndelayed = 'defer'\nattribution_s = 90.0\n")
    assert "delayed = 'defer' weighs by the share of late" in refused("log", "sql", "-c", toml)


def test_history_is_imported_and_a_version_trained(tmp_path, result, refused):
    toml, rows = tmp_path / "millstream.toml", tmp_path / "rows.csv"
    toml.write_text(TOML)
    rows.write_text(ROWS)
    assert result("log", "import", rows, "-c", toml, *MAP) == {"topic": "outcomes", "rows": 3}
    made = result("train", "offline", "-c", toml)
    assert (made["model"], made["version"], made["role"], made["examples"]) == ("ranker", "1", "live", 3)
    listed = result("models", "list", tmp_path / "models")
    assert (listed[0]["role"], listed[0]["made_by"]) == ("live", "millstream train")
    assert result("train", "offline", "-c", toml)["version"] == "2"
    assert result("train", "pause", "-c", toml, "--why", "a test")["learning"] == "paused"
    assert "learning" not in result("train", "resume", "-c", toml)
    status = result("train", "status", "-c", toml)
    assert (status["learning"], status["live"], status["end"]) == ("run", "1", 3)
    assert "later than" in refused("train", "rollback", "-c", toml, "--to", "1970-01-01")
    assert result("traffic", "show", tmp_path / "models", "ranker")["live"] == "1"
    assert "no column 'at'" in refused("log", "import", _bare(tmp_path), "-c", toml, *MAP)
    assert "no such file" in refused("log", "import", tmp_path / "none.csv", "-c", toml, *MAP)
    with Log(tmp_path / "log", FakeClock()) as log:
        log.writer("served")
        assert "has a writer already" in refused("log", "import", rows, "-c", toml, *MAP)


def _bare(folder):
    (folder / "bare.csv").write_text("user,item\n1,2\n")
    return folder / "bare.csv"


@pytest.mark.parametrize(
    "verb",
    [["train", "offline"], ["train", "status"], ["up"], ["up", "--role", "serve"], ["up", "--role", "learn"]],
    ids=" ".join,
)
@pytest.mark.parametrize(
    ("toml", "words"),
    [("http_prt = 1", "setting `http_prt`"), ("= 3", "not TOML"), (None, "No such file"), ("http_port = -1", ">= 0")],
)  # fmt: skip
def test_settings_that_cannot_be_used_are_a_sentence(tmp_path, refused, verb, toml, words):
    file = tmp_path / "millstream.toml"
    if toml is not None:
        file.write_text(toml)
    assert words in refused(*verb, "-c", file)


def test_training_needs_features(tmp_path, refused):
    (tmp_path / "millstream.toml").write_text("")
    assert "[features]" in refused("train", "offline", "-c", tmp_path / "millstream.toml")


def test_the_doctor_says_what_to_do_about_what_is_missing_alone(tmp_path, result, call):
    found = {one["what"]: one for one in result("doctor", tmp_path)}
    assert {"python", "millstream", "extra learn", "free disk space", "log", "models"} <= set(found)
    assert found["log"]["state"] == "missing" and found["models"]["do"]
    (tmp_path / "log").mkdir()
    found = {one["what"]: one for one in result("doctor", tmp_path)}
    assert found["log"] == {"what": "log", "state": "present"}
    assert all("do" not in one or one["state"] in ("missing", "not installed") for one in found.values())
    assert any(one.get("do") for one in result("doctor", tmp_path / "nowhere"))
    assert "python" in call("doctor")[1]


def test_the_doctor_warms_the_kernels(result):
    found = result("doctor", "--warm")
    assert found["compiled"] == "the learner's kernels" and found["seconds"] >= 0
