"""squire_teachers against servers of its own, honest and not: test_squire_teachers.py LIBRARY MODEL_FOLDER"""
import functools
import json
import math
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).parent
HOUSEHOLD = HERE / "../../examples/household"
sys.path[:0] = [str(HERE / "../../examples/twc"), str(HOUSEHOLD)]
import queue_teacher
import squire
from squire_teachers import Answering, Chat, Failed, LlamaCpp, LlamaCppPython, Said, SGLang, Turn, Vllm, check

TOP_K = 3
VOCABULARY = None


@functools.cache
def distribution(before):
    weights = [1 + (id * 7 + before) % 5 for id in range(VOCABULARY)]
    return [math.log(weight / sum(weights)) for weight in weights]


def logprob(ids, at, id):
    """What the servers say: any distribution that depends on what stands before."""
    return distribution(sum(ids[:at]) % 5)[id]


def ranked(ids, at):
    """Ids by their log-prob."""
    return sorted(range(VOCABULARY), key=lambda id: -logprob(ids, at, id))


def text(ids):
    """What the ids mean to a server that takes text: a character each."""
    return "".join(chr(0x4E00 + id) for id in ids)


class Handler(BaseHTTPRequestHandler):
    """All dialects; `fault` names what is wrong with it, `acts` whether it is asked for turns."""
    fault, acts = None, False

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = type(self).fault
        if fault == "drops":
            self.connection.close()
            return
        if fault == "500":
            self.send_error(500, "out of memory")
            return
        if fault == "stalls":
            time.sleep(2)
        score = {"/v1/completions": self.llama_python if "echo" in asked else self.vllm, "/generate": self.sglang,
                 "/completion": self.llama, "/extras/tokenize": self.tokenize}
        act = {"/v1/completions": self.vllm_says, "/generate": self.sglang_says, "/completion": self.llama_says,
               "/v1/chat/completions": self.chat_says}
        answer = (act if type(self).acts else score)[self.path](asked, fault)
        body = json.dumps(answer).encode()
        if fault == "garbage":
            body = b"<html>"
        if fault == "truncates":
            body = body[:len(body) // 2]
        try:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            pass  # whoever asked has gone

    def vllm(self, asked, fault):
        ids, k = asked["prompt"], asked["prompt_logprobs"]
        assert asked["temperature"] == 1.0 and asked["return_token_ids"]
        entry = lambda at, id: {"logprob": 0.5 if fault == "lies" else logprob(ids, at, id), "rank": 1}
        maps = [None]
        for at in range(1, len(ids)):
            of = {str(id): entry(at, id) for id in ranked(ids, at)[:k]}
            if fault != "misses":
                of[str(ids[at])] = entry(at, ids[at])
            maps.append(of)
        if fault == "shortens":
            maps.pop()
        if fault == "forgets":
            maps[-1] = None
        echoed = ids[:-1] + [ids[-1] ^ 1] if fault == "other ids" else ids
        return {"choices": [{"prompt_logprobs": maps, "prompt_token_ids": echoed, "text": ""}]}

    def sglang(self, asked, fault):
        ids, start, k = asked["input_ids"], asked["logprob_start_len"], asked["top_logprobs_num"]
        said = [[None, ids[start], None]] + [[logprob(ids, at, ids[at]), ids[at], None] for at in range(start + 1, len(ids))]
        top = [None] + [[[logprob(ids, at, id), id, None] for id in ranked(ids, at)[:k]] for at in range(start + 1, len(ids))]
        if fault == "lies":
            said[-1][0] = 0.5
        if fault == "other ids":
            said[-1][1] ^= 1
        if fault == "shortens":
            said.pop()
        if fault == "forgets":
            said[-1][0] = None
        return {"meta_info": {"input_token_logprobs": said, "input_top_logprobs": top}}

    def llama(self, asked, fault):
        ids, k = asked["prompt"], asked["n_probs"]
        assert asked["n_predict"] == 1 and not asked["post_sampling_probs"] and asked["top_k"] == 1 and k
        at = len(ids)
        known = ranked(ids, at)[:k]
        said = asked["logit_bias"][0][0] if asked["logit_bias"] else known[0]
        entry = lambda id: {"id": id, "logprob": logprob(ids, at, id)}
        told = {**entry(said), "top_logprobs": [entry(id) for id in known]}
        if fault == "lies":
            told["logprob"] = 0.5
        if fault == "other ids":
            told["id"] ^= 1
        if fault == "forgets":
            told["logprob"] = None
        # The real one tells nothing of what begins a character.
        probabilities = [] if fault == "misses" or said % 5 == 2 else [told]
        return {"tokens": [said], "tokens_evaluated": at - (fault == "shortens"), "truncated": fault == "cuts",
                "completion_probabilities": probabilities}

    def tokenize(self, asked, fault):
        return {"tokens": ([] if fault == "no begin" else [0]) + [ord(c) - 0x4E00 for c in asked["input"]]}

    def llama_python(self, asked, fault):
        assert asked["temperature"] == 1.0 and asked["logprobs"] == 0 and asked["echo"] and asked["max_tokens"] == 1
        ids = self.tokenize({"input": asked["prompt"]}, fault)["tokens"]
        said = [None] + [logprob(ids, at, ids[at]) for at in range(2, len(ids))] + [-1.0]
        if fault == "shortens":
            del said[-2:]
        if fault == "forgets":
            said[-2] = None
        n = len(ids) + (fault == "other ids")
        return {"usage": {"prompt_tokens": n}, "choices": [{"text": asked["prompt"] + "x", "logprobs": {"token_logprobs": said}}]}

    def vllm_says(self, asked, fault):
        assert asked["return_token_ids"] and asked["stop_token_ids"] == [9] and asked["logprobs"] == 0 and asked["top_k"] == -1
        said = {"beyond": [5, VOCABULARY, 9], "endless": [5] * 99, "other end": [5], "aborts": [5]}.get(fault, [5, 6, 9])
        logprobs = None if fault == "no log-probs" else [0.5 if fault == "lies" else -0.5] * len(said)
        return {"choices": [{"token_ids": said, "finish_reason": {"endless": "length", "aborts": "abort"}.get(fault, "stop"), "stop_reason": None,
                             "logprobs": {"token_logprobs": logprobs}}]}

    def sglang_says(self, asked, fault):
        assert asked["sampling_params"]["stop_token_ids"] == [9] and asked["sampling_params"]["max_new_tokens"] == 6
        said = {"beyond": [5, VOCABULARY], "endless": [5] * 99, "wide": [2**32 + 5]}.get(fault, [5, 6])  # the one that ends it is told apart
        why = {"other end": {"type": "stop", "matched": "\n"}, "lies": {"type": "\ud800"}}.get(fault, {"type": "stop", "matched": 9})
        return {"output_ids": said, "meta_info": {"finish_reason": {"type": "length"} if fault == "endless" else why}}

    def llama_says(self, asked, fault):
        assert asked["n_predict"] == 6 and asked["return_tokens"] and asked["samplers"] == ["temperature", "top_k", "top_p"]
        said = {"beyond": [5, VOCABULARY, 9], "endless": [5] * 99, "other end": [5]}.get(fault, [5, 6, 9, 7])  # it went on
        return {"tokens": said, "tokens_evaluated": len(asked["prompt"]) - (fault == "shortens"),
                "stop_type": "eos" if fault == "other end" else "limit"}

    def chat_says(self, asked, fault):
        assert asked["messages"][0] == {"role": "user", "content": "hi"}
        said = None if fault == "forgets" else "yes"
        return {"choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": "length" if fault == "cuts" else "stop"}]}

    def log_message(self, *_):
        pass


class Quiet(ThreadingHTTPServer):
    """One whose clients may hang up."""

    def handle_error(self, *_):
        pass


def play(distiller, n):
    """Episodes of one turn."""
    for i in range(n):
        with distiller.episode() as episode:
            ids = (squire.c.c_int32 * 3)(1 + i, 2, 3)
            squire.call("episode_observe_ids", episode, ids, squire.c.c_size_t(3))
            assert episode.decide().actor == squire.STUDENT
            episode.act(5).text()
            episode.outcome(0)
            episode.end(1, True)


def refused(of, ids, start, k, reason):
    try:
        of.score(ids, start, k)
        raise AssertionError(f"scored, though: {reason}")
    except Failed as e:
        assert reason in str(e), e


IMITATION = {"actor": {"kind": "teacher"}, "student_turns": {"kernel": "none"}, "teacher_turns": {"kernel": "cross-entropy"}}


def turn_of(distiller):
    """A turn of the teacher's in an episode of its own: its ids, or why there are none."""
    with distiller.episode() as episode:
        ids = (squire.c.c_int32 * 3)(1, 2, 3)
        squire.call("episode_observe_ids", episode, ids, squire.c.c_size_t(3))
        assert episode.decide().actor == squire.TEACHER
        try:
            episode.act(6, stop_ids=[9]).text()
        except squire.Error as e:
            assert e.status == -17, str(e)
            return str(e)
        episode.outcome(0)
        return episode.trace()["ids"][3:]


def says_turns(address, model):
    """Servers that take turns: what ends them, and what they are not believed."""
    Handler.acts = True
    for kind in Vllm, SGLang, LlamaCpp:
        teacher = squire.Teacher(vocabulary="the-students", acts=True, scores=False, deadline_ms=20_000)
        distiller = squire.Distiller(model, IMITATION, teacher)
        with Answering(squire.lib, teacher, kind(address, "a-model", timeout=1)):
            assert turn_of(distiller) == [5, 6, 9]
            faults = {
                "500": "HTTP 500", "drops": "Remote", "stalls": "no answer within 1 s", "garbage": "not JSON", "truncates": "not JSON",
                "beyond": f"id {VOCABULARY} is none of the", "endless": "wanted a turn of 1 to 6 tokens, found 99",
                "other end": "tells no id that ends one",
            }
            faults |= {Vllm: {"lies": "which is none", "aborts": "ended by 'abort'"}, SGLang: {"lies": "ended by '\\ud800'", "wide": "an id that no vocabulary has"},
                       LlamaCpp: {"shortens": "wanted what follows 3 ids"}}[kind]
            for Handler.fault, reason in faults.items():
                why = turn_of(distiller)
                assert isinstance(why, str) and reason in why, (kind, Handler.fault, why)
            Handler.fault = "no log-probs"
            assert turn_of(distiller) == [5, 6, 9]
            Handler.fault = None
    # Of ids a chat server knows nothing; of messages it says text (which tests/teacher_acts follows to its ids).
    wanted = Turn(6, 1.0, 1.0, 0, 1, [9], [{"role": "user", "content": "hi"}])
    of = Chat(address, "a-model", timeout=1)
    assert of.act([1], wanted) == Said(text="yes")
    for fault, reason in {"forgets": "says no text", "500": "HTTP 500", "garbage": "not JSON"}.items():
        Handler.fault = fault
        refused_turn(of, wanted, reason)
    Handler.fault = "cuts"
    assert of.act([1], wanted) == Said(text="yes", cut_off=True)
    Handler.fault, Handler.acts = None, False
    refused_turn(of, wanted._replace(messages=None), "was given ids")
    refused_turn(LlamaCppPython(address, text=text), wanted, "says no turns")
    refused(of, [1, 2], 1, 0, "scores nothing")


def refused_turn(of, turn, reason):
    try:
        of.act([1, 2, 3], turn)
        raise AssertionError(f"said, though: {reason}")
    except Failed as e:
        assert reason in str(e), e


def takes_text(address):
    """llama-cpp-python's server: what is said after an id of its own, and nothing else."""
    of = LlamaCppPython(address, text=text, timeout=1)
    ids = [0, 6, 7, 8, 9, 10]
    places = of.score(ids, 3, 0)
    assert [own for own, _ in places] == [logprob(ids, at, ids[at]) for at in (3, 4, 5)], places
    assert all(known == [] for _, known in places)
    refused(of, ids, 3, 2, "top_k 0")
    for wrong, start in ([1, 6, 7, 8], 2), ([0, 6, 0, 7], 2), (ids, 1):
        refused(of, wrong, start, 0, "texts that begin with id 0")
    refused(LlamaCppPython(address, text=lambda ids: text(ids[:-1]), timeout=1), ids, 3, 0, "makes other ids")
    for fault, reason in {
        "no begin": "one place off", "shortens": "wanted the log-probs of 5 ids", "forgets": "not as this kind",
        "other ids": "scored another text", "500": "HTTP 500", "drops": "/extras/tokenize", "garbage": "not JSON",
        "truncates": "not JSON",
    }.items():
        Handler.fault = fault
        refused(of, ids, 3, 0, reason)
    Handler.fault = None


def asks_another_process(library, folder, model):
    """The household's teacher in a process of its own says what the model says here."""
    command = [sys.executable, str(HOUSEHOLD / "queue_teacher.py"), library, folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            of = SGLang(process.stdout.readline().strip(), timeout=20)
            ids = [5, 6, 7, 8, 9, 10]
            # Nine digits are all of an f32's, which the queue takes.
            f32 = lambda x: squire.c.c_float(x).value
            found = [(f32(own), [(id, f32(logprob)) for id, logprob in known]) for own, known in of.score(ids, 3, TOP_K)]
            rows = queue_teacher.score(model, ids, 3, TOP_K)
            assert found == [(own, list(zip(top, logprobs))) for own, top, logprobs in rows], (found, rows)
            wanted = Turn(4, 1.0, 1.0, 0, 77, [9], None)
            said, again = of.act(ids, wanted), queue_teacher.generate(model, ids, {
                "max_new_tokens": 4, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "sampling_seed": 77, "stop_token_ids": [9]})
            assert said.ids == again[0] and 1 <= len(said.ids) <= 4, (said, again)
            refused(of, [5], 1, 0, "HTTP 400")
            refused(of, [5, VOCABULARY], 1, 0, "HTTP 400")
        finally:
            process.stdin.close()


def main():
    global VOCABULARY
    library, folder = sys.argv[1:]
    squire.open_library(library)
    engine = squire.Engine(compute=squire.F32, threads=1)
    model = squire.Model(engine, folder)
    VOCABULARY = json.loads((Path(folder) / "config.json").read_text())["vocab_size"]
    server = Quiet(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    settings = {"preset": "opd", "batch_episodes": 3}

    def taught():
        teacher = squire.Teacher(vocabulary="the-students", top_k=TOP_K, deadline_ms=20_000)
        return teacher, squire.Distiller(model, settings, teacher)

    reports = {}
    for kind in Vllm, SGLang, LlamaCpp:
        of = kind(address, "a-model", timeout=1)
        ids = [5, 6, 7, 8, 9, 10]
        places = of.score(ids, 4, TOP_K)
        for at, (own, known) in zip((4, 5), places):
            assert abs(own - logprob(ids, at, ids[at])) < 1e-9
            wanted = [logprob(ids, at, id) for id in ranked(ids, at)[:TOP_K]]
            assert all(abs(x - y) < 1e-9 for (_, x), y in zip(known, wanted)), (known, wanted)
        found = check(of, ids)
        assert found["again"] == found["in_parts"] == 0 and found["mean"] < -1, found

        # An honest one teaches.
        teacher, distiller = taught()
        with Answering(squire.lib, teacher, of, threads=2):
            found = distiller.check_teacher(ids=ids)
            assert found["again"]["share"] == found["in_parts"]["share"] == 0 and not found["warnings"], found
            play(distiller, 3)
            reports[kind] = distiller.update()
        assert reports[kind]["episodes"] == 3 and not reports[kind]["set_aside"], reports[kind]
        # The block closed it, which its threads did not wait for: what is asked now is refused and not waited for.
        play(distiller, 1)
        begun = time.monotonic()
        try:
            distiller.update()
            raise AssertionError("a closed teacher answered")
        except squire.Error as e:
            assert e.status == -17 and "the teacher is closed" in str(e) and time.monotonic() - begun < 5, str(e)
        # One that is to stay open is answered by the next block.
        teacher, distiller = taught()
        with Answering(squire.lib, teacher, of, close=False):
            pass
        with Answering(squire.lib, teacher, of):
            play(distiller, 1)
            assert distiller.update()["episodes"] == 1

        # One that is not: the reason is told, and the episodes wait for a better one.
        faults = {
            "500": "HTTP 500", "drops": "/", "stalls": "no answer within 1 s", "garbage": "not JSON", "truncates": "not JSON",
            "lies": "which is none", "other ids": "scored", "shortens": "wanted the log-probs", "forgets": "not as this kind",
        }
        if kind is Vllm:
            faults["misses"] = "no log-prob of id"
        if kind is LlamaCpp:
            faults |= {"misses": "tells nothing of id", "cuts": "cut them"}
        for fault, reason in faults.items():
            teacher, distiller = taught()
            lines = []
            Handler.fault = fault
            with Answering(squire.lib, teacher, of, threads=2, log=lines.append):
                play(distiller, 2)
                try:
                    distiller.update()
                    raise AssertionError(f"{fault} was taken for an answer")
                except squire.Error as e:
                    assert e.status == -17 and reason in str(e), (fault, str(e))
                assert any(reason in line for line in lines), (fault, lines)
                Handler.fault = None
                # What was asked anew may have met the fault once more.
                episodes, attempts = 0, 0
                while episodes < 2 and attempts < 6:
                    attempts += 1
                    try:
                        episodes += distiller.update()["episodes"]
                    except squire.Error as e:
                        assert e.status == -17, (fault, str(e))
                assert episodes == 2, fault
    # All say the same, so all teach the same.
    for kind in SGLang, LlamaCpp:
        assert abs(reports[Vllm]["loss"] - reports[kind]["loss"]) < 1e-7, reports
    takes_text(address)
    says_turns(address, model)
    asks_another_process(library, folder, model)
    server.shutdown()
    try:
        Vllm("http://127.0.0.1:9", timeout=1).score([1, 2], 1, 0)
        raise AssertionError("nobody is there")
    except Failed as e:
        assert "/v1/completions" in str(e), e
    print("ok")


main()
