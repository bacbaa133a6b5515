"""A small real model learns a text game from its gold paths: main.py FOLDER, which setup.sh has made; --help says more."""
import argparse
import datetime
import os
import platform
import random
import time
from math import sqrt
from pathlib import Path

import squire
from game import SETTINGS, World

HERE = Path(__file__).parent
SYSTEM = {"role": "system", "content": "You play a text game. Answer with one command and nothing else."}
ACTION_TOKENS = 24
FIRST_DEV_SEED = 100


def settings_of(turns, steps, batch, rate):
    """Imitation, by an adapter on all seven projections."""
    return {
        "preset": "sft", "steps": steps, "max_turns": turns,
        "lora": {"rank": 16, "alpha": 32},
        "batch_episodes": batch, "normaliser": "sequence-mean",
        "optimizer": {
            "learning_rate": {"start": rate, "end": rate / 10, "shape": "linear", "begin": 0, "finish": 1, "clock": "fraction"},
            "weight_decay": 0, "grad_clip": 1,
        },
    }


def messages(turn, text):
    """What a turn shows: the first one tells what is wanted too. No list of commands."""
    user = {"role": "user", "content": text}
    return [user] if turn else [SYSTEM, user]


# ---- learning -----------------------------------------------------------------------------------


def demonstration(world, seed):
    """A won game: what it said in each turn, and what the gold path answered."""
    actions, turns = world.gold("train", seed), []
    game = world.game("train", seed)
    while not game.won:  # some paths go on behind the end
        turns.append((game.text, actions[len(turns)]))
        game.step(turns[-1][1])
    return turns


def replay(distiller, turns):
    """Plays a demonstration as an episode, which the next update learns from; gives its tokens."""
    with distiller.episode() as episode:
        for turn, (text, action) in enumerate(turns):
            episode.observe(messages(turn, text))
            assert episode.decide().actor == squire.REPLAY
            episode.replay(action)
            episode.outcome(0)
        episode.end(1, True)
        return len(episode.trace()["ids"])


def games_of(step, demonstrations, batch):
    """Pass after pass over all of them, each in an order of its own."""
    def place(at):
        order = list(range(len(demonstrations)))
        random.Random(at // len(order)).shuffle(order)
        return order[at % len(order)]
    return [demonstrations[place(at)] for at in range(step * batch, (step + 1) * batch)]


def train(distiller, worlds, steps, batch, games, checkpoint):
    """Gives the seconds that it took, and the tokens read. Each step takes its games by its number, so a run that was
    stopped goes on as if it had not been."""
    demonstrations = [demonstration(worlds[seed % len(worlds)], seed) for seed in range(games)]
    tokens, begun = 0, time.monotonic()
    while distiller.step < steps:
        tokens += sum(replay(distiller, turns) for turns in games_of(distiller.step, demonstrations, batch))
        report = distiller.update()
        distiller.publish()
        seconds = time.monotonic() - begun
        if distiller.step % 5 == 0 or distiller.step == steps:
            print(f"step {distiller.step}: loss {report['loss']:.4f}, {tokens / seconds:.0f} tokens/s, {seconds:.0f} s", flush=True)
            if checkpoint:
                distiller.save(checkpoint)
    return time.monotonic() - begun, tokens


# ---- playing ------------------------------------------------------------------------------------


class Play:
    """A game in which whoever the method says acts; in an evaluation the student."""

    def __init__(self, distiller, game, **spec):
        self.game, self.episode, self.turns, self.said, self.failed = game, distiller.episode(**spec), 0, None, None
        self.demonstration = spec.get("demonstration")

    def begin_turn(self, temperature):
        """Whether there is a turn: no caller waits for it yet, so the turns of many games are computed together."""
        if self.game.over or self.failed:
            return False
        try:
            self.episode.observe(messages(self.turns, self.game.text))
            actor = self.episode.decide().actor
            if actor == squire.REPLAY:
                self.said = None
                self.episode.replay(self.demonstration[self.turns])
            elif actor != squire.STOP:
                self.said = self.episode.act(ACTION_TOKENS, temperature)
        except squire.Error as e:
            return self.fail(e)
        return actor != squire.STOP

    def end_turn(self):
        try:
            action = self.said.text().strip() if self.said else self.demonstration[self.turns]
        except squire.Error as e:
            return self.fail(e)
        self.episode.outcome(self.game.step(action))
        self.turns += 1

    def fail(self, error):
        """A game that has no room left, or no teacher, ends where it stands; others go on."""
        if error.status not in (squire.CONTEXT_FULL, squire.TEACHER_FAILED):
            raise error
        self.failed = str(error)
        return False

    def end(self):
        self.episode.end(self.game.score, self.game.won)
        self.episode.release()


def play(plays, temperature=None):
    """Plays games until nobody has a turn. All are under way at once: each turn begins in all before anyone is waited for."""
    under_way = plays
    while under_way := [p for p in under_way if p.begin_turn(temperature)]:
        for one in under_way:
            one.end_turn()


def evaluate(engine, distiller, world, games, temperature):
    """Plays games of the dev fold, whose objects no train game has. None if there are none."""
    if not games:
        return None
    begun, before = time.monotonic(), engine.metrics()
    plays = [Play(distiller, world.game("dev", FIRST_DEV_SEED + i), evaluation=True) for i in range(games)]
    play(plays, temperature)
    for one in plays:
        one.end()
    after, seconds = engine.metrics(), time.monotonic() - begun
    found = {"games": games, "won": sum(p.game.won for p in plays) / games, "turns": sum(p.turns for p in plays) / games,
             "seconds": seconds, "read": (after["rows"] - before["rows"]) / seconds,
             "said": (after["sampled"] - before["sampled"]) / seconds}
    print(f"temperature {temperature}: won {share(found['won'], games)}, {found['turns']:.1f} turns, {seconds:.0f} s", flush=True)
    return found


def share(p, n):
    """With its standard error."""
    return f"{100 * p:.0f} ± {100 * sqrt(p * (1 - p) / n):.0f} % of {n}"


# ---- the experiment -----------------------------------------------------------------------------

HEAD = """\
Before and after:

| temperature | won | turns | seconds | tokens computed/s | tokens said/s |
|---|---|---|---|---|---|
"""
COLUMNS = (lambda x: share(x["won"], x["games"]), lambda x: f"{x['turns']:.1f}", lambda x: f"{x['seconds']:.0f}",
           lambda x: f"{x['read']:.0f}", lambda x: f"{x['said']:.0f}")


def machine():
    """The processor, where Linux tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name, family = (next(x.split(":")[1].strip() for x in lines if x.startswith(k)) for k in ("model name", "cpu family"))
        name += f" (family {family})"
    except (OSError, StopIteration):
        name = platform.machine()
    return f"{os.cpu_count()} cores of {name}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="what setup.sh has made")
    parser.add_argument("--library", type=Path, default=HERE / "../../target/release/libsquire.so")
    parser.add_argument("--setting", choices=SETTINGS, default="twc-1", help="%(choices)s, from easy to hard")
    parser.add_argument("--learn", choices=SETTINGS, nargs="*", help="the settings of the games to learn from, in turn; as --setting")
    parser.add_argument("--steps", type=int, default=76, help="%(default)s")
    parser.add_argument("--batch", type=int, default=4, help="games a step; %(default)s")
    parser.add_argument("--rate", type=float, default=5e-4, help="the learning rate at the start; %(default)s")
    parser.add_argument("--games", type=int, default=400, help="of the train fold to learn from; %(default)s")
    parser.add_argument("--before", type=int, default=20, help="games of the dev fold to measure by before; %(default)s")
    parser.add_argument("--after", type=int, default=50, help="and after; %(default)s")
    parser.add_argument("--temperatures", type=float, nargs="*", default=[0, 0.4])
    parser.add_argument("--compute", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--threads", type=int, default=0, help="one a core")
    parser.add_argument("--save", type=Path, help="a folder for the adapter that was learnt, as PEFT reads it")
    parser.add_argument("--checkpoint", type=Path, help="a folder to write to now and then, and to go on from")
    parser.add_argument("--results", type=Path, help="a file that the table is appended to")
    asked = parser.parse_args()
    if min(asked.steps, asked.batch, asked.games) < 1:
        parser.error("--steps, --batch and --games: 1 or more")

    squire.open_library(asked.library)
    setting, learnt = SETTINGS[asked.setting], [SETTINGS[name] for name in asked.learn or [asked.setting]]
    world, worlds = World(setting), [World(of) for of in learnt]
    turns, context = (max(getattr(of, limit) for of in [setting, *learnt]) for limit in ("turns", "context"))
    engine = squire.Engine(compute=getattr(squire, asked.compute.upper()), threads=asked.threads)
    model = squire.Model(engine, asked.folder / "smollm2", max_context=context)
    distiller = squire.Distiller(model, settings_of(turns, asked.steps, asked.batch, asked.rate), checkpoint=asked.checkpoint)

    def measure(games):
        return [evaluate(engine, distiller, world, games, t) for t in asked.temperatures]

    before = measure(asked.before)
    seconds, tokens = train(distiller, worlds, asked.steps, asked.batch, asked.games, asked.checkpoint)
    after = measure(asked.after)
    rows = HEAD
    for t, *both in zip(asked.temperatures, before, after):
        told = (("–" if one is None else form(one) for one in both) for form in COLUMNS)
        rows += f"| {t:g} | " + " | ".join(", ".join(x) for x in told) + " |\n"
    title = (f"{asked.setting}: {asked.steps} steps in {seconds:.0f} s, {tokens / seconds:.0f} tokens/s. "
             f"{datetime.date.today()}, {machine()}, {asked.compute}.")
    print(f"{title}\n\n{rows}")
    if asked.results:
        with asked.results.open("a") as f:
            f.write(f"\n{title}\n\n{rows}")
    if asked.save:
        model.save_adapter(asked.save)


if __name__ == "__main__":
    main()
