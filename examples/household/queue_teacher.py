#!/usr/bin/env python3
"""The household's teacher in a process of its own: queue_teacher.py LIBRARY MODEL_FOLDER [--port 0] [--threads 1]

Loads the model by squire's C interface and answers on the loopback address as SGLang's /generate does: of each id from
logprob_start_len on its log-prob, and the top_logprobs_num most likely ids in its place; or, where max_new_tokens is above 0, the
ids that follow, drawn by sampling_seed as squire draws. Prints its address, and serves until
its standard input ends. It can be asked by `household --teacher-url ADDRESS` or by bindings/python/squire_teachers.py (SGLang).
"""
import argparse
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "../twc"))
import squire
from squire import c

LONGEST_QUESTION = 1 << 20
IGNORE_MODEL_STOPS, TOKENS = 1, 1  # flag of a generation, kind of an event


class Session(squire.Object):
    KIND = "session"


class Scores(squire.Object):
    KIND = "scores"


class Generation(squire.Object):
    KIND = "gen"


def ints(ids):
    return (c.c_int32 * len(ids))(*ids), c.c_size_t(len(ids))


def score(model, ids, start, k):
    """For each of ids[start:]: its log-prob, the k most likely ids in its place, and theirs."""
    rows = []
    with Session("session_create", model) as session:
        squire.call("session_sync", session, *ints(ids[:start]), None)
        with Scores("score", session, *ints(ids[start:]), c.c_int32(k), None) as scores:
            logprob, top, logprobs = c.c_float(), c.POINTER(c.c_int32)(), c.POINTER(c.c_float)()
            out = c.byref(logprob), c.byref(top), c.byref(logprobs)
            for i in range(len(ids) - start):
                squire.call("scores_row", scores, c.c_size_t(i), *out, None)
                rows.append((logprob.value, top[:k], logprobs[:k]))
    return rows


def generate(model, ids, sampling):
    """The ids that follow, and SGLang's reason why they end."""
    options, event, said = squire.GenOptions(), squire.Event(), []
    stops, n_stops = ints(sampling["stop_token_ids"])
    options.flags, options.max_tokens, options.seed = IGNORE_MODEL_STOPS, sampling["max_new_tokens"], sampling["sampling_seed"]
    options.temperature, options.top_p, options.top_k = sampling["temperature"], sampling["top_p"], max(sampling["top_k"], 0)
    options.stop_ids, options.stop_ids_len = c.cast(stops, c.c_void_p), n_stops
    with Session("session_create", model) as session:
        squire.call("session_sync", session, *ints(ids), None)
        with Generation("gen_start", session, c.byref(options)) as generation:
            while squire.call("gen_next", generation, c.c_int32(-1), c.byref(event)) == 0 and event.kind == TOKENS:
                said += event.ids[:event.ids_len]
    return said, {"type": "stop", "matched": said[-1]} if event.finish == 1 else {"type": "length"}


def answer(ids, start, k, rows):
    """SGLang's document. Written by hand: json takes as long for it as squire for the scores. Nine digits are all of an f32's."""
    entry = "[%.9g,%d,null]"
    place = "[" + ",".join([entry] * k) + "]"
    said = [entry % (logprob, id) for id, (logprob, _, _) in zip(ids[start:], rows)]
    pairs = [[None] * (2 * k) for _ in rows]
    for of, (_, top, logprobs) in zip(pairs, rows):
        of[::2], of[1::2] = logprobs, top
    # The place before the first has an entry, which says nothing.
    said, top = [f"[null,{ids[start - 1]},null]", *said], ["null", *(place % tuple(of) for of in pairs)]
    return f'{{"meta_info":{{"input_token_logprobs":[{",".join(said)}],"input_top_logprobs":[{",".join(top)}]}}}}'


class Handler(BaseHTTPRequestHandler):
    model = None

    def do_POST(self):
        try:
            asked = json.loads(self.rfile.read(min(int(self.headers["Content-Length"]), LONGEST_QUESTION)))
            ids, sampling = asked["input_ids"], asked.get("sampling_params", {})
            if sampling.get("max_new_tokens", 0) > 0:
                said, why = generate(self.model, ids, sampling)
                status, body = 200, json.dumps({"output_ids": said, "meta_info": {"finish_reason": why}}).encode()
            else:
                start, k = asked["logprob_start_len"] + 1, asked["top_logprobs_num"]
                if not 1 <= start < len(ids):
                    raise ValueError("nothing is to be scored")
                status, body = 200, answer(ids, start, k, score(self.model, ids, start, k)).encode()
        except (LookupError, TypeError, ValueError, c.ArgumentError, squire.Error) as e:
            status, body = 400, json.dumps({"error": f"{type(e).__name__}: {e}"}).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            pass  # whoever asked has gone

    def log_message(self, *_):
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library")
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    squire.open_library(Path(arguments.library).resolve())
    Handler.model = squire.Model(squire.Engine(compute=squire.F32, threads=arguments.threads), arguments.model)
    server = ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()
    server.shutdown()


if __name__ == "__main__":
    main()
