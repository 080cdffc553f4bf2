"""Close the loop with your own data: import history, train, serve, tell outcomes, and see the answer change.

    pip install 'millstream[learn]'
    python examples/close_the_loop.py

An installation is made in a temporary folder, with the same commands that you would type.
"""

import csv
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from millstream.client import Client
from millstream.errors import Busy

SETTINGS = """
http_port = {port}

[learn]
model = "ranker"
push.push_s = 0.2

[features]
user = [{{ name = "id" }}, {{ name = "age", bucket = 10 }}]
item = [{{ name = "id" }}, {{ name = "genres", places = 3 }}]
crosses = ["user.id*item.id", "user.id*item.genres"]
"""
GENRES = ("comedy", "drama", "western")


def write(path: Path, names: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(names)
        table.writerows(rows)


def history(folder: Path) -> None:
    """Three files as a company might have them. The stars are random: the past teaches next to nothing."""
    chance = random.Random(1)
    write(folder / "users.csv", ["user_id", "age"], [[f"u{n}", 20 + n] for n in range(40)])
    write(folder / "items.csv", ["item_id", "genres"], [[f"i{n}", GENRES[n % 3]] for n in range(30)])
    past = [
        [f"u{chance.randrange(40)}", f"i{chance.randrange(30)}", 1_700_000_000 + 60 * n, chance.randint(1, 5)]
        for n in range(2000)
    ]
    write(folder / "ratings.csv", ["user_id", "item_id", "time", "stars"], past)


def millstream(folder: Path, *words: str) -> None:
    print("$ millstream", *words, flush=True)
    subprocess.run([sys.executable, "-m", "millstream", *words], cwd=folder, check=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def patiently(ask, seconds: float = 30.0):
    """`ask()`, again while the service is starting."""
    until = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except Busy:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def scores(client: Client, candidates: list[str]) -> dict[str, float]:
    """Ask for a ranking, print it, and give each item's score."""
    ranked = patiently(lambda: client.recommend("u7", candidates))
    print(f"version {ranked.version}:", ", ".join(f"{one.item} {one.score:.3f}" for one in ranked.items), flush=True)
    return {one.item: one.score for one in ranked.items}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        (folder / "millstream.toml").write_text(SETTINGS.format(port=port))
        history(folder)
        configured = ("-c", "millstream.toml")
        millstream(folder, "log", "import", "users.csv", *configured, "--topic", "users",
                   "--map", "id=user_id", "age=age:int")  # fmt: skip
        millstream(folder, "log", "import", "items.csv", *configured, "--topic", "items",
                   "--map", "id=item_id", "genres=genres:list")  # fmt: skip
        millstream(folder, "log", "import", "ratings.csv", *configured,
                   "--map", "user=user_id", "item=item_id", "event_time=time", "like=stars>=4")  # fmt: skip
        millstream(folder, "train", "offline", *configured)

        print("$ millstream up -c millstream.toml &", flush=True)
        service = subprocess.Popen([sys.executable, "-m", "millstream", "up", *configured], cwd=folder)
        candidates = ["i0", "i1", "i2"]
        try:
            with Client(f"http://127.0.0.1:{port}") as client:
                before = scores(client, candidates)
                for _ in range(20):  # u7 is shown the western i2 and likes it, again and again
                    request = client.recommend("u7", candidates).id
                    client.outcome(request, "i2", "impression")
                    client.outcome(request, "i2", "like")
                if not client.flush() or client.dropped:
                    raise SystemExit("the service did not take every outcome")
                time.sleep(1.5)  # several times push_s
                after = scores(client, candidates)
                print(f"i2 went from {before['i2']:.3f} to {after['i2']:.3f}", flush=True)
                if after["i2"] <= before["i2"]:
                    raise SystemExit("nothing was learnt")
        finally:
            service.terminate()
            service.wait()
        millstream(folder, "models", "list", "models")
        millstream(folder, "log", "list", "log")


if __name__ == "__main__":
    main()
