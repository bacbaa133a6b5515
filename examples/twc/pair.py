"""A real pair in a real environment: one small model in memory, an adapter that plays well teaches another one.

pair.py FOLDER, which setup.sh has made; --help says more. What is made once (the teacher, where the students start, the
teacher's games) lies in --work; runs that are in --results are not done again, so what was stopped goes on.
"""
import argparse
import json
import time
from math import sqrt
from pathlib import Path

import squire
from game import SETTINGS, World
from main import FIRST_DEV_SEED, HERE, Play, evaluate, games_of, play, settings_of, train

METHODS = ["opd", "guided-opd", "tcod-f2b", "tcod-b2f", "sft"]
REPLAYING = ["tcod-b2f", "sft"]  # which build on the teacher's demonstrations
STARTS = ["untrained", "stopped"]
MOST_AT_ONCE = 50  # games that the teacher plays together: each holds its context, 46 KB a token in f32
MOST_FAILURES = 10  # updates in a row that the teacher may fail


class Pair:
    """What all runs share."""

    def __init__(self, asked):
        self.asked, self.setting = asked, SETTINGS[asked.setting]
        self.world = World(self.setting)
        self.engine = squire.Engine(compute=getattr(squire, asked.compute.upper()), threads=asked.threads)
        self.teacher = asked.teacher or asked.work / f"teacher-{asked.teacher_steps}"

    def model(self):
        """The base model anew, without an adapter."""
        return squire.Model(self.engine, self.asked.folder / "smollm2", max_context=self.setting.context)

    def taught(self):
        """The same with the teacher's adapter by name."""
        model = self.model()
        model.load_adapter("teacher", self.teacher)
        return model

    def imitation(self):
        """The settings by which the teacher learns, and by which a student does that is stopped early."""
        asked = self.asked
        return settings_of(self.setting.turns, asked.teacher_steps, asked.batch, asked.teacher_rate)

    def settings(self, method):
        """Of a run: the preset, and what is the same for all. Who imitates asks no teacher."""
        asked = self.asked
        document = settings_of(self.setting.turns, asked.updates, asked.batch, asked.rate)
        del document["normaliser"]  # the preset's own
        document.update(preset=method, seed=asked.seed)
        return document if method == "sft" else {**document, "teacher_adapter": "teacher"}

    # ---- made once ------------------------------------------------------------------------------

    def imitate(self, steps, adapter):
        """Imitates the gold paths for so many steps and writes the adapter; a checkpoint beside it lets that go on."""
        checkpoint = self.asked.work / f"{adapter.name}.checkpoint"
        with self.model() as model, squire.Distiller(model, self.imitation(), checkpoint=checkpoint) as distiller:
            train(distiller, [self.world], steps, self.asked.batch, self.asked.games, checkpoint)
            model.save_adapter(adapter)

    def stopped(self):
        return self.asked.work / f"stopped-{self.asked.start_steps}"

    def start(self, model, start):
        """Makes the model the student that a run starts from."""
        if start == "stopped":  # what is resumed is served, by whichever distiller comes next
            checkpoint = self.asked.work / f"{self.stopped().name}.checkpoint"
            squire.Distiller(model, self.imitation(), checkpoint=checkpoint).release()

    def teachers_games(self, fold, seeds, temperature):
        """Has the teacher play games; nothing is learnt of them. Gives them with the tokens that it said in each."""
        settings = {
            "preset": "sft", "actor": {"kind": "teacher"}, "teacher_adapter": "teacher", "max_turns": self.setting.turns,
            "lora": {"rank": 16, "alpha": 32}, "sampling": {"temperature": temperature}, "seed": self.asked.seed,
        }
        with self.taught() as model, squire.Distiller(model, settings, teacher=model) as distiller:
            done = []
            for at in range(0, len(seeds), MOST_AT_ONCE):
                plays = [Play(distiller, self.world.game(fold, seed)) for seed in seeds[at:at + MOST_AT_ONCE]]
                play(plays)
                for one in plays:
                    one.tokens = sum(turn["end"] - turn["start"] for turn in one.episode.trace()["turns"])
                    one.episode.release()
                done += plays
        return done

    def demonstrations(self):
        """The games of the train fold that the teacher wins, which all methods play, and the tokens that it said in all that
        it played. Written down, since a teacher plays them the same way again."""
        path = self.asked.work / f"demonstrations-{self.teacher.name}-{self.asked.demonstrations}.json"
        if not path.exists():
            plays = self.teachers_games("train", range(self.asked.demonstrations), 0)
            won = [{"seed": p.game.seed, "actions": p.game.actions} for p in plays if p.game.won]
            path.write_text(json.dumps({"tokens": sum(p.tokens for p in plays), "games": won}))
            print(f"the teacher won {len(won)} of {len(plays)} games of the train fold", flush=True)
        found = json.loads(path.read_text())
        if not found["games"]:
            raise SystemExit("the teacher won no game, so there is nothing to learn from it; train it longer (--teacher-steps)")
        return found["games"], found["tokens"]

    # ---- a run ----------------------------------------------------------------------------------

    def learn(self, distiller, method, games):
        """Plays and learns; gives what each update's report says of it."""
        updates, failures = [], 0
        while distiller.step < self.asked.updates:
            begun, worked, plays = time.monotonic(), time.process_time(), []
            for chosen in games_of(distiller.step, games, self.asked.batch):
                spec = {"demonstration": chosen["actions"]} if method in REPLAYING else {}
                plays.append(Play(distiller, self.world.game("train", chosen["seed"]), **spec))
            play(plays)
            for one in plays:
                one.end()
            played = time.monotonic() - begun
            try:
                report = distiller.update()
            except squire.Error as e:
                failures += 1
                if e.status != squire.TEACHER_FAILED or failures == MOST_FAILURES:
                    raise
                continue
            distiller.publish()
            failures = 0
            took, cpu = time.monotonic() - begun, time.process_time() - worked
            updates.append({
                **{key: report[key] for key in ("loss", "reverse_kl", "forward_kl", "cross_entropy", "loss_by_turn", "successes",
                                                "gradient_norm", "update_kl")},
                **{of: {who: report[f"{who}_{of}"] for who in ("student", "teacher", "replay")} for of in ("turns", "tokens")},
                "failed": [one.failed for one in plays if one.failed], "set_aside": len(report["set_aside"]),
                "played_seconds": played, "seconds": took, "cpu_seconds": cpu,
            })
            print(f"update {distiller.step}: loss {report['loss']:.4f}, {report['successes']} of {len(plays)} won, "
                  f"{took:.1f} s, {played:.1f} of them play; {cpu:.1f} s of all cores", flush=True)
        return updates

    def run(self, method, start, games, demonstrated, before):
        """A row of results. `before`: what the same student won in an earlier run, if there was one."""
        print(f"\n{method}, {start}", flush=True)
        asked = self.asked
        with self.taught() as model:
            self.start(model, start)
            teacher = None if method == "sft" else model
            with squire.Distiller(model, self.settings(method), teacher=teacher) as distiller:
                def measure():
                    return evaluate(self.engine, distiller, self.world, asked.dev, asked.temperature)
                before, begun = before or told(measure()), time.monotonic()
                updates = self.learn(distiller, method, games)
                seconds = time.monotonic() - begun
                return {"before": before, "after": told(measure()), "seconds": seconds, "by_update": updates,
                        "demonstrated_tokens": demonstrated if method in REPLAYING else 0,
                        **{of: {who: sum(x[of][who] for x in updates) for who in ("student", "teacher", "replay")}
                           for of in ("turns", "tokens")}}


def told(found):
    """What an evaluation came to: the share that was won with its standard error, turns a game."""
    won, games = found["won"], found["games"]
    return {"won": won, "error": sqrt(won * (1 - won) / games), "turns": found["turns"], "games": games}


# ---- results ------------------------------------------------------------------------------------


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key_of(asked, teacher, method, start):
    """What a row is of: two with the same are one run."""
    key = {"method": method, "start": start, "setting": asked.setting, "teacher": teacher.name, "dev": asked.dev,
           "temperature": asked.temperature, "compute": asked.compute}
    if start == "stopped":
        key["start_steps"] = asked.start_steps
    if method != "teacher":
        key.update(updates=asked.updates, batch=asked.batch, rate=asked.rate, seed=asked.seed, demonstrations=asked.demonstrations)
    return key


def is_of(row, key):
    return all(row.get(name) == value for name, value in key.items())


def table(rows):
    def share(x):
        return f"{100 * x['won']:.0f} ± {100 * x['error']:.0f} %"

    lines = ["| method | start | won before | won after | turns before, after | loss, first and last fifth of the updates | "
             "turns by student, teacher, replay | tokens by student, teacher, replay (demonstrated) | seconds |", "|---" * 9 + "|"]
    for row in rows:
        after = row["after"]
        if row["method"] == "teacher":
            lines.append(f"| the teacher | | | {share(after)} of {after['games']} | {after['turns']:.1f} |" + " |" * 4)
            continue
        losses = [x["loss"] for x in row["by_update"]]
        fifth = max(1, len(losses) // 5)
        first, last = (sum(part) / fifth for part in (losses[:fifth], losses[-fifth:]))
        acted = [", ".join(str(row[of][who]) for who in ("student", "teacher", "replay")) for of in ("turns", "tokens")]
        lines.append(f"| {row['method']} | {row['start']} | {share(row['before'])} | {share(after)} of {after['games']} | "
                     f"{row['before']['turns']:.1f}, {after['turns']:.1f} | {first:.3f}, {last:.3f} | {acted[0]} | "
                     f"{acted[1]} ({row['demonstrated_tokens']}) | {row['seconds']:.0f} |")
    return "\n".join(lines)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what setup.sh has made")
    parser.add_argument("--library", type=Path, default=HERE / "../../target/release/libsquire.so")
    parser.add_argument("--work", type=Path, help="where what is made once lies; FOLDER/pair-SETTING")
    parser.add_argument("--setting", choices=SETTINGS, default="twc-1", help="%(choices)s, from easy to hard")
    parser.add_argument("--teacher", type=Path, help="a folder with the teacher's adapter, of rank 16; without it one is trained")
    parser.add_argument("--teacher-steps", type=int, default=76, help="of imitation, as main.py's --steps; %(default)s")
    parser.add_argument("--teacher-rate", type=float, default=5e-4, help="its learning rate at the start; %(default)s")
    parser.add_argument("--games", type=int, default=400, help="of the train fold whose gold paths it imitates; %(default)s")
    parser.add_argument("--starts", choices=STARTS, nargs="*", default=STARTS, help="untrained, or stopped early in that imitation")
    parser.add_argument("--start-steps", type=int, default=10, help="after so many steps of it; %(default)s")
    parser.add_argument("--methods", choices=METHODS, nargs="*", default=METHODS)
    parser.add_argument("--demonstrations", type=int, default=120, help="train games that the teacher plays; %(default)s")
    parser.add_argument("--updates", type=int, default=30, help="of each run; %(default)s")
    parser.add_argument("--batch", type=int, default=4, help="games an update; %(default)s")
    parser.add_argument("--rate", type=float, default=5e-4, help="the runs' learning rate at the start; %(default)s")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--dev", type=int, default=50, help="games of the dev fold to measure by; %(default)s")
    parser.add_argument("--temperature", type=float, default=0, help="to measure at; %(default)s")
    parser.add_argument("--compute", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--threads", type=int, default=0, help="one a core")
    parser.add_argument("--results", type=Path, required=True, help="a file of JSON lines that rows are appended to, and read from")
    parser.add_argument("--table", action="store_true", help="print the table of --results and do nothing else")
    asked = parser.parse_args()
    if min(asked.teacher_steps, asked.start_steps, asked.demonstrations, asked.updates, asked.batch, asked.games, asked.dev) < 1:
        parser.error("numbers of steps, updates and games: 1 or more")
    asked.work = asked.work or asked.folder / f"pair-{asked.setting}"
    return asked


def experiment(asked):
    squire.open_library(asked.library)
    asked.work.mkdir(parents=True, exist_ok=True)
    pair = Pair(asked)

    def is_there(key):
        return any(is_of(row, key) for row in rows_of(asked.results))

    def write(key, found):
        with asked.results.open("a") as f:
            f.write(json.dumps({**key, **found}) + "\n")

    if not pair.teacher.exists():
        pair.imitate(asked.teacher_steps, pair.teacher)
    if "stopped" in asked.starts and not pair.stopped().exists():
        pair.imitate(asked.start_steps, pair.stopped())
    if not is_there(key := key_of(asked, pair.teacher, "teacher", None)):
        plays = pair.teachers_games("dev", range(FIRST_DEV_SEED, FIRST_DEV_SEED + asked.dev), asked.temperature)
        won, turns = sum(p.game.won for p in plays), sum(p.turns for p in plays)
        write(key, {"after": told({"won": won / asked.dev, "turns": turns / asked.dev, "games": asked.dev})})
    games, demonstrated = pair.demonstrations()
    for start in asked.starts:
        for method in asked.methods:
            key = key_of(asked, pair.teacher, method, start)
            if is_there(key):
                continue
            # A start plays the same games the same way before every method.
            names = ("start", "start_steps", "setting", "dev", "temperature", "compute", "teacher", "seed")
            same = {name: key.get(name) for name in names}
            before = next((row["before"] for row in rows_of(asked.results) if "before" in row and is_of(row, same)), None)
            write(key, pair.run(method, start, games, demonstrated, before))


def main():
    asked = arguments()
    if not asked.table:
        experiment(asked)
    print("\n" + table(rows_of(asked.results)))


if __name__ == "__main__":
    main()
