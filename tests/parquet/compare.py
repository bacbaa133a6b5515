"""Compares a Parquet file of records with the records themselves: types, metadata, and every number bit for bit.

    compare.py OUT.parquet episode|token RECORD.jsonl...

The records are read here anew, by Python's own JSON and not by squire. Prints how many rows and values were compared."""

import json
import struct
import sys

import pyarrow as pa
import pyarrow.parquet as pq

count = 0


def read(paths):
    """The episodes of all records, an identity once, and the lines of the runs."""
    runs, episodes, said = {}, {}, {}
    for path in paths:
        for line in open(path, encoding="utf-8"):
            if not line.endswith("\n"):
                break
            line = json.loads(line)
            # Evaluations are numbered by themselves, and nobody scores them; a host may number alike in every update.
            key = (line["run"], line.get("evaluation", False), line.get("step"), line.get("episode"))
            if line["kind"] == "record":
                runs.setdefault(line["run"], line)
            elif line["kind"] == "episode":
                if episodes.get(key) != line:
                    said.pop(key, None)
                episodes[key] = line
            elif line["kind"] == "teacher":
                said[key] = line
    return runs, episodes, said


def expected(episode, said):
    """What a row of an episode is to have, with what is of its tokens as lists."""
    n = len(episode["ids"])
    row = {key: episode.get(key) for key in ("run", "episode", "step", "task", "group", "panel", "task_seed", "seed", "revision",
                                             "evaluation", "settings", "score", "success", "ids")}
    row["group"], row["panel"] = row["group"] or "", row["panel"] or ""
    fork = episode.get("forked_from") or {}
    row["forked_from_episode"], row["forked_from_turn"] = fork.get("episode"), fork.get("turn")
    row["source"] = [name for name, length in episode["sources"] for _ in range(length)]
    row.update(turn=[-1] * n, mask=[False] * n)
    for key in ("logprob", "sampled_logprob", "teacher_logprob", "teacher_top_ids", "teacher_top_logprobs"):
        row[key] = [None] * n
    for number, turn in enumerate(episode["turns"]):
        for i, at in enumerate(range(turn["start"], turn["end"])):
            row["turn"][at], row["mask"][at] = number, turn["train"]
            for key in ("logprob", "sampled_logprob"):
                if turn[key + "s"]:
                    row[key][at] = turn[key + "s"][i]
    for i, at in enumerate(said["positions"] if said else []):
        k = said["top_k"]
        row["teacher_logprob"][at] = said["logprobs"][i]
        if k:
            row["teacher_top_ids"][at] = said["top_ids"][i * k:(i + 1) * k]
            row["teacher_top_logprobs"][at] = said["top_logprobs"][i * k:(i + 1) * k]
    row["actor"] = [turn["actor"] for turn in episode["turns"]]
    row["reward"] = [turn["reward"] for turn in episode["turns"]]
    row["text"] = [turn.get("text") for turn in episode["turns"]]
    return row


def tokens(row):
    """The same, one row a token."""
    for at, number in enumerate(row["ids"]):
        one = {key: row[key] for key in ("run", "episode", "step", "task", "evaluation")}
        one.update(position=at, id=number, actor=row["actor"][row["turn"][at]] if row["turn"][at] >= 0 else None)
        for key in ("source", "turn", "mask", "logprob", "sampled_logprob", "teacher_logprob", "teacher_top_ids",
                    "teacher_top_logprobs"):
            one[key] = row[key][at]
        yield one


def same(found, wanted, kind, where):
    global count
    if pa.types.is_list(kind) and wanted is not None:
        assert isinstance(found, list) and len(found) == len(wanted), f"{where}: {found} and not {wanted}"
        for i, (a, b) in enumerate(zip(found, wanted)):
            same(a, b, kind.value_type, f"{where}[{i}]")
        return
    count += 1
    if wanted is not None and pa.types.is_floating(kind):
        form = "<f" if pa.types.is_float32(kind) else "<d"
        assert found is not None, f"{where}: null and not {wanted}"
        found, wanted = struct.pack(form, found), struct.pack(form, wanted)
    assert type(found) is type(wanted) and found == wanted, f"{where}: {found!r} and not {wanted!r}"


SCALARS = {"string": pa.string(), "u64": pa.uint64(), "i32": pa.int32(), "bool": pa.bool_(), "f32": pa.float32(),
           "f64": pa.float64()}
COMMON = {"run": "string", "episode": "u64", "step": "u64", "task": "string", "evaluation": "bool"}
EPISODE = {**COMMON, "group": "string", "panel": "string", "task_seed": "u64?", "seed": "u64", "revision": "u64",
           "forked_from_episode": "u64?", "forked_from_turn": "i32?", "settings": "string", "score": "f64", "success": "bool?",
           "ids": "[i32]", "source": "[string]", "turn": "[i32]", "mask": "[bool]", "logprob": "[f32?]",
           "sampled_logprob": "[f32?]", "teacher_logprob": "[f32?]", "teacher_top_ids": "[[i32]?]",
           "teacher_top_logprobs": "[[f32]?]", "actor": "[string]", "reward": "[f64?]", "text": "[string?]"}
TOKEN = {**COMMON, "position": "i32", "id": "i32", "source": "string", "turn": "i32", "actor": "string?", "mask": "bool",
         "logprob": "f32?", "sampled_logprob": "f32?", "teacher_logprob": "f32?", "teacher_top_ids": "[i32]?",
         "teacher_top_logprobs": "[f32]?"}


def spelled(field):
    """A field's type as the tables above have it."""
    kind = field.type
    name = f"[{spelled(kind.value_field)}]" if pa.types.is_list(kind) else next(n for n, t in SCALARS.items() if t == kind)
    return name + ("?" if field.nullable else "")


def main():
    path, form, *records = sys.argv[1:]
    runs, episodes, said = read(records)
    file = pq.ParquetFile(path)
    schema = file.schema_arrow
    types = {field.name: spelled(field) for field in schema}
    assert types == (EPISODE if form == "episode" else TOKEN), types
    metadata = {key.decode(): value.decode() for key, value in schema.metadata.items()}
    line = next(iter(runs.values()))
    assert metadata["squire.row"] == form and metadata["squire.rows"] == str(line["rows"]), metadata
    assert metadata.get("squire.vocabulary") == line["vocabulary"], metadata
    assert metadata["squire.version"] == line["squire"], metadata
    assert json.loads(metadata["squire.settings"]) == {run["fingerprint"]: run["settings"] for run in runs.values()}, metadata
    rows = (expected(episode, said.get(key)) for key, episode in episodes.items())
    if form == "token":
        rows = (token for row in rows for token in tokens(row))
    n = 0
    for batch in file.iter_batches(batch_size=1 if form == "episode" else 4096):
        for found in batch.to_pylist():
            wanted = next(rows)
            assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
            for field in schema:
                same(found[field.name], wanted[field.name], field.type, f"row {n}: {field.name}")
            n += 1
    assert next(rows, None) is None, "rows are missing"
    print(f"{n} rows, {count} values, {file.num_row_groups} row groups")


main()
