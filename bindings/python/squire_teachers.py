"""Answers the requests of a squire teacher from a server that scores text, or says turns: vLLM, SGLang or llama.cpp, and for turns
alone anything that speaks as OpenAI's chat completions do.

    teacher = ...                              # a squire_teacher*, made by squire_teacher_create with top_k 32, say
    with Answering(library, teacher, Vllm("http://127.0.0.1:8000", "Qwen/Qwen3-30B-A3B"), threads=8):
        ...                                    # play, build, apply, publish; then the teacher is closed

Ids go to the server and never text, at temperature 1 on raw logits; what comes back must be of the very ids that were sent, or
the request is told to have failed, with the reason. Nothing here needs a package. vLLM is to be started with --max-logprobs of
top_k at least and --logprobs-mode raw_logprobs. The exceptions, which take text, say so: LlamaCppPython and Chat.
"""
import ctypes as c
import http.client
import json
import threading
import urllib.error
import urllib.request
from typing import NamedTuple

END, TIMEOUT = 1, 2  # of squire_status
TURN = 1  # kind of a request
CUT_OFF = 1  # of a turn's flags


class Failed(Exception):
    """A request that cannot be answered, with the reason."""


class Turn(NamedTuple):
    """How a turn is wanted."""
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int  # to draw from; 0: all
    seed: int
    stop_ids: list
    messages: list  # what was said so far; None where ids were observed
    stop_strings: list = []  # texts that end it; squire cuts what is said behind the first
    time_left_ms: int = 0  # of its time limit; 0: it has none

    def said(self, ids, logprobs=None, finish=None, stop=None):
        """What a server generated, up to the first id that ends a turn. `stop`: the id that ended it where the server keeps it to
        itself, `finish`: why it ended."""
        at = next((at for at, id in enumerate(ids) if id in self.stop_ids), None)
        if at is None and stop in self.stop_ids:
            ids, logprobs, at = [*ids, stop], None, len(ids)
        if at is not None:
            return Said(ids[:at + 1], logprobs and logprobs[:at + 1])
        if finish == "stop":
            raise Failed("the turn ended, and the server tells no id that ends one")
        if finish != "length":
            raise Failed(f"the turn ended by {finish!r}")
        return Said(ids, logprobs, cut_off=len(ids) < self.max_tokens)


class Said(NamedTuple):
    """A turn: ids, or text."""
    ids: list = None
    logprobs: list = None  # of the ids, at temperature 1 on raw logits; None: not known
    text: str = None
    cut_off: bool = False


class Server:
    """A server, by its address; `key` goes into the Authorization header. `timeout`, in seconds, is for each piece of an answer
    and lies below the teacher's deadline_ms, so that its episodes hear why."""

    def __init__(self, url, model=None, key=None, timeout=30):
        self.url, self.model, self.timeout = url.rstrip("/"), model, timeout
        self.headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}

    def score(self, ids, start, k):
        """For each of ids[start:], given all before it: its log-prob, and the k most likely ids with theirs."""
        raise Failed("this kind of server scores nothing")

    def act(self, ids, turn):
        """The turn that follows ids, as Said."""
        raise Failed("this kind of server says no turns")

    def post(self, path, document):
        """The answer's JSON, or Failed in words."""
        request = urllib.request.Request(self.url + path, json.dumps(document).encode(), self.headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as e:
            said = e.read(300).decode(errors="replace")
            raise Failed(f"{path}: HTTP {e.code}: {said}") from e
        except TimeoutError as e:
            raise Failed(f"{path}: no answer within {self.timeout} s") from e
        except (OSError, http.client.HTTPException) as e:
            raise Failed(f"{path}: {e or type(e).__name__}") from e
        except ValueError as e:
            raise Failed(f"{path}: the answer is not JSON: {e}") from e


class Vllm(Server):
    """vLLM's /v1/completions with prompt_logprobs; its maps hold the actual id beside the most likely ones."""

    def score(self, ids, start, k):
        answer = self.post("/v1/completions", {
            "model": self.model, "prompt": ids, "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": k,
            "return_token_ids": True,
        })
        with understood():
            choice = answer["choices"][0]
            echoed = choice.get("prompt_token_ids")
            maps = choice["prompt_logprobs"]
        if echoed is not None and echoed != ids:
            raise Failed("the server scored other ids than it was sent")
        if maps is None or len(maps) != len(ids):
            raise Failed(f"wanted the log-probs of {len(ids)} ids, found {0 if maps is None else len(maps)}")
        places = []
        for at in range(start, len(ids)):
            with understood(at):
                of = {int(id): float(entry["logprob"]) for id, entry in maps[at].items()}
            if ids[at] not in of:
                raise Failed(f"position {at}: no log-prob of id {ids[at]}, another text was scored")
            places.append((of[ids[at]], best(of, k, at)))
        return places

    def act(self, ids, turn):
        answer = self.post("/v1/completions", {
            "model": self.model, "prompt": ids, "max_tokens": turn.max_tokens, "temperature": turn.temperature, "top_p": turn.top_p,
            "top_k": turn.top_k or -1, "seed": turn.seed % 2**63, "stop_token_ids": turn.stop_ids, "logprobs": 0,
            "return_token_ids": True,
            # Else the model's own generation_config may have others.
            "min_p": 0.0, "repetition_penalty": 1.0,
        })
        with understood():
            choice = answer["choices"][0]
            said, finish, stop = [int(id) for id in choice["token_ids"]], choice["finish_reason"], choice.get("stop_reason")
            logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
            logprobs = logprobs and [float(logprob) for logprob in logprobs]
        return turn.said(said, logprobs if logprobs and len(logprobs) == len(said) else None, finish, stop)


class SGLang(Server):
    """SGLang's /generate; asked from one place earlier, since the first one it returns may have no number."""

    def score(self, ids, start, k):
        answer = self.post("/generate", {
            "input_ids": ids, "sampling_params": {"max_new_tokens": 0, "temperature": 1.0}, "return_logprob": True,
            "logprob_start_len": start - 1, "top_logprobs_num": k,
        })
        with understood():
            said = answer["meta_info"]["input_token_logprobs"][1:]
            top = answer["meta_info"]["input_top_logprobs"][1:] if k else [[]] * len(said)
        n = len(ids) - start
        if len(said) != n or len(top) != n:
            raise Failed(f"wanted the log-probs of {n} ids, found {len(said)} and most likely ids of {len(top)} places")
        places = []
        for at, entry, known in zip(range(start, len(ids)), said, top):
            with understood(at):
                logprob, id = float(entry[0]), int(entry[1])
                of = {int(id): float(logprob) for logprob, id, *_ in known}
            if id != ids[at]:
                raise Failed(f"position {at}: id {id} was scored and not {ids[at]}")
            places.append((logprob, best(of, k, at)))
        return places

    def act(self, ids, turn):
        answer = self.post("/generate", {
            "input_ids": ids, "sampling_params": {
                "max_new_tokens": turn.max_tokens, "temperature": turn.temperature, "top_p": turn.top_p, "top_k": turn.top_k or -1,
                "sampling_seed": turn.seed % 2**63, "stop_token_ids": turn.stop_ids,
            },
        })
        with understood():
            said, why = [int(id) for id in answer["output_ids"]], answer["meta_info"]["finish_reason"]
            finish, stop = why["type"], why.get("matched")
        return turn.said(said, None, finish, stop)


class LlamaCpp(Server):
    """llama.cpp's own server, by its /completion. That tells log-probs of what it generates and of no prompt, so every place is a
    request of its own: the ids before it are the prompt, which the server has in its cache but for the last, and the one id that it
    generates is made to be the one that was said, by a bias. The log-probs are those of the raw logits, which no bias changes.

    Of an id that is the beginning of a character it tells nothing. There the place is asked again, for its `wide` most likely ids,
    and the request fails where the id is not among them."""

    def __init__(self, *arguments, wide=4096, **options):
        super().__init__(*arguments, **options)
        self.wide = wide
        self.whole = None  # an id of which it told something: no beginning of a character

    def score(self, ids, start, k):
        places = []
        for at in range(start, len(ids)):
            told = self._place(ids, at, ids[at], max(k, 1))
            if told:
                self.whole = ids[at]
                logprob, of = told
            else:
                _, of = self._place(ids, at, self.whole, max(k, self.wide)) or (None, {})
                logprob = of.get(ids[at])
            if logprob is None:
                raise Failed(f"position {at}: the server tells nothing of id {ids[at]}, which may be the beginning of a character, "
                             f"and it is not among the {len(of)} most likely")
            places.append((logprob, best(of, k, at)))
        return places

    def act(self, ids, turn):
        """It ends turns by its own model's ids alone; what it says behind another of the turn's is left out."""
        answer = self.post("/completion", {
            **({"model": self.model} if self.model else {}),
            "prompt": ids, "n_predict": turn.max_tokens, "temperature": turn.temperature, "top_p": turn.top_p, "top_k": turn.top_k,
            "samplers": ["temperature", "top_k", "top_p"], "seed": turn.seed % 2**32, "return_tokens": True, "cache_prompt": True,
            "n_cache_reuse": 0,
        })
        with understood():
            said, n = [int(id) for id in answer["tokens"]], answer["tokens_evaluated"]
            finish = {"eos": "stop", "word": "stop"}.get(answer["stop_type"], "length")
        if n != len(ids):
            raise Failed(f"wanted what follows {len(ids)} ids, the server read {n}")
        return turn.said(said, None, finish)

    def _place(self, ids, at, said, k):
        """The log-prob of `said` (None: of whatever is most likely) after ids[:at], and the k most likely ids with theirs; or
        None."""
        answer = self.post("/completion", {
            **({"model": self.model} if self.model else {}),
            "prompt": ids[:at], "n_predict": 1, "n_probs": k, "post_sampling_probs": False, "return_tokens": True,
            "logit_bias": [] if said is None else [[said, 1e6]], "samplers": ["top_k"], "top_k": 1, "temperature": 1.0,
            # What stands in the cache as the same ids in other places is not the same.
            "cache_prompt": True, "n_cache_reuse": 0,
        })
        with understood(at):
            n, cut, tokens = answer["tokens_evaluated"], answer["truncated"], answer["tokens"]
            entry = (answer.get("completion_probabilities") or [None])[0]
        if n != at or cut:
            raise Failed(f"position {at}: wanted the log-probs after {at} ids, the server read {n}{' and cut them' if cut else ''}")
        if said is not None and tokens != [said]:
            raise Failed(f"position {at}: ids {tokens} were scored and not {said}")
        if entry is None:
            return None
        with understood(at):
            id, logprob = int(entry["id"]), float(entry["logprob"])
            of = {int(e["id"]): float(e["logprob"]) for e in entry["top_logprobs"]}
        if said is not None and id != said:
            raise Failed(f"position {at}: id {id} was scored and not {said}")
        return logprob, of


class LlamaCppPython(Server):
    """llama-cpp-python's server (started with --logits_all true), by echo. It takes text and no ids: `text` is a function that
    gives the text of ids, control tokens included, and what is scored are the ids that the server's own tokenizer makes of that
    text, which must be the same. It answers with texts too, which several ids may share, so it is asked for the log-probs of
    what was said alone: top_k is 0. And only for models that begin every text with an id of their own: without one, what that server
    calls the log-prob of an id of the prompt is that of seeing it once more in the place after."""

    def __init__(self, *arguments, text, **options):
        super().__init__(*arguments, **options)
        self.text = text

    def _ids(self, text):
        answer = self.post("/extras/tokenize", {"model": self.model, "input": text})
        with understood():
            return [int(id) for id in answer["tokens"]]

    def score(self, ids, start, k):
        if k:
            raise Failed("llama-cpp-python's server names the most likely ids by their texts, which several may share: it can answer "
                         "a teacher with top_k 0; llama.cpp's own server gives ids")
        begin = self._ids("")
        if len(begin) != 1:
            raise Failed("llama-cpp-python's server gives the log-probs of a prompt one place off where the model begins no text with "
                         "an id of its own; use llama.cpp's own server")
        if ids[:1] != begin or begin[0] in ids[1:] or start < 2:
            raise Failed(f"llama-cpp-python's server scores texts that begin with id {begin[0]}, from the second id after it on, and "
                         "leaves that id out where it stands again")
        text = self.text(ids[1:])
        if self._ids(text) != ids:
            raise Failed("the server's tokenizer makes other ids of the text than were to be scored")
        answer = self.post("/v1/completions", {
            "model": self.model, "prompt": text, "max_tokens": 1, "temperature": 1.0, "echo": True, "logprobs": 0,
        })
        with understood():
            n, choice = answer["usage"]["prompt_tokens"], answer["choices"][0]
            echoed, logprobs = choice["text"], choice["logprobs"]["token_logprobs"]
        if n != len(ids) or not echoed.startswith(text):
            raise Failed("the server scored another text than it was sent")
        # All but the first, and perhaps the one that was generated.
        if len(logprobs) not in (n - 1, n):
            raise Failed(f"wanted the log-probs of {n - 1} ids, found {len(logprobs)}")
        places = []
        for at in range(start, n):
            with understood(at):
                places.append((float(logprobs[at - 1]), []))
        return places


class Chat(Server):
    """/v1/chat/completions of whatever speaks so: it reads the messages and says its turn as text, which squire makes ids. For a
    teacher with vocabulary "another", or one that scores by other means. What else shapes its draws (top_k, penalties), and tools, are
    the server's own."""

    def act(self, ids, turn):
        if turn.messages is None:
            raise Failed("a chat server reads messages, and the episode was given ids")
        answer = self.post("/v1/chat/completions", {
            "model": self.model, "messages": turn.messages, "max_tokens": turn.max_tokens, "temperature": turn.temperature,
            "top_p": turn.top_p, "seed": turn.seed % 2**63,
        })
        with understood():
            choice = answer["choices"][0]
            said, finish = choice["message"]["content"], choice["finish_reason"]
        if not isinstance(said, str) or finish not in ("stop", "length"):
            raise Failed(f"the server says no text: it ended by {finish!r}")
        return Said(text=said, cut_off=finish == "length")


class understood:
    """Turns whatever a strange answer makes fail into Failed."""

    def __init__(self, at=None):
        self.where = "the answer" if at is None else f"position {at}"

    def __enter__(self):
        return self

    def __exit__(self, kind, e, _):
        if kind and issubclass(kind, (LookupError, TypeError, ValueError, AttributeError)):
            raise Failed(f"{self.where}: not as this kind of server answers: {kind.__name__}: {e}") from e


def best(of, k, at):
    """The k most likely ids, most likely first."""
    if len(of) < k:
        raise Failed(f"position {at}: wanted {k} most likely ids, found {len(of)}; the server may allow fewer (--max-logprobs)")
    return sorted(of.items(), key=lambda pair: -pair[1])[:k]


def check(server, ids, k=0):
    """Scores ids twice, and once in two parts. Gives how far the log-probs of a sequence lie apart at most when it is asked
    again (`again`) and asked in parts (`in_parts`), beside what they are on average (`mean`, in nats): a teacher whose answers
    move as much as a student's do teaches noise."""
    if len(ids) < 4:
        raise ValueError("wanted 4 ids at least")
    once, again = (server.score(ids, 1, k) for _ in range(2))
    middle = len(ids) // 2
    parts = server.score(ids[:middle], 1, k) + server.score(ids, middle, k)
    apart = lambda a, b: max(abs(x[0] - y[0]) for x, y in zip(a, b))
    return {"again": apart(once, again), "in_parts": apart(once, parts), "mean": sum(x[0] for x in once) / len(once)}


class StopString(c.Structure):
    _fields_ = [("text", c.POINTER(c.c_char)), ("len", c.c_size_t)]


class Request(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("top_k", c.c_int32), ("number", c.c_uint64), ("episode", c.c_uint64),
                ("ids", c.POINTER(c.c_int32)), ("n_ids", c.c_size_t), ("start", c.c_size_t), ("vocabulary", c.c_size_t),
                ("deadline_ms", c.c_uint64), ("distiller", c.c_uint64), ("step", c.c_uint64), ("revision", c.c_uint64),
                ("kind", c.c_int32), ("draw_top_k", c.c_int32), ("top_p", c.c_double), ("temperature", c.c_double),
                ("seed", c.c_uint64), ("max_tokens", c.c_size_t), ("stop_ids", c.POINTER(c.c_int32)), ("n_stop_ids", c.c_size_t),
                ("messages", c.POINTER(c.c_char)), ("messages_len", c.c_size_t), ("stop_strings", c.POINTER(StopString)),
                ("n_stop_strings", c.c_size_t), ("time_left_ms", c.c_uint64)]

    def turn(self):
        """The turn that is wanted; None where scores are."""
        if self.kind != TURN:
            return None
        messages = json.loads(self.messages[:self.messages_len]) if self.messages else None
        return Turn(self.max_tokens, self.temperature, self.top_p, self.draw_top_k, self.seed, self.stop_ids[:self.n_stop_ids],
                    messages, [one.text[:one.len].decode() for one in self.stop_strings[:self.n_stop_strings]],
                    self.time_left_ms)


class Answering:
    """Threads that answer a teacher's requests from a server, until the block ends or somebody closes the teacher. `library` is
    a ctypes.CDLL of squire or its path, `teacher` a squire_teacher*. `log`, if given, hears of what failed; it is called on those
    threads. The block's end closes the teacher, so that what is asked later is refused at once; with close=False it stays open,
    for another block."""

    def __init__(self, library, teacher, server, threads=4, log=None, close=True):
        self.library = library if isinstance(library, c.CDLL) else c.CDLL(library)
        self.library.squire_error_message.restype = c.c_char_p
        self.library.squire_teacher_retain.restype = c.c_void_p
        # A plain number would be cut to 32 bits.
        self.teacher = c.c_void_p(teacher) if isinstance(teacher, int) else teacher
        self.server, self.log, self.close = server, log or (lambda line: None), close
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def __enter__(self):
        self.held = c.c_void_p(self.library.squire_teacher_retain(self.teacher))
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        if self.close:
            self._call("close", self.held)
        for thread in self.threads:
            thread.join()
        self.library.squire_teacher_release(self.held)

    def _call(self, name, *arguments):
        slot = c.c_void_p()
        status = getattr(self.library, f"squire_teacher_{name}")(*arguments, c.byref(slot))
        if status < 0:
            why = self.library.squire_error_message(slot, None).decode()
            self.library.squire_error_release(slot)
            raise Failed(why)
        return status

    def _run(self):
        request = Request()
        self.library.squire_teacher_request_init(c.byref(request), c.c_size_t(c.sizeof(request)))
        # Nothing but a close wakes a thread that waits.
        wait = c.c_uint64(3_600_000 if self.close else 100)
        while not self.stopping.is_set():
            batch = c.c_void_p()
            status = self._call("next", self.held, c.c_size_t(1), wait, c.byref(batch))
            if status == END:
                return
            if status == TIMEOUT:
                continue
            try:
                self._call("batch_request", batch, c.c_size_t(0), c.byref(request))
                self._answer(request)
            finally:
                self.library.squire_teacher_batch_release(batch)

    def _answer(self, request):
        number = c.c_uint64(request.number)
        try:
            ids, turn = request.ids[:request.n_ids], request.turn()
            if turn:
                self._say(number, self.server.act(ids, turn))
            else:
                self._score(number, ids, request.start, request.top_k)
        except Exception as e:  # whatever it is, the episode must hear of it
            why = str(e) if isinstance(e, Failed) else f"{type(e).__name__}: {e}"
            said = why.encode(errors="replace")
            try:
                self._call("fail", self.held, number, said, c.c_size_t(len(said)))
            except Failed as e:
                why += f"; and nobody wants to hear it: {e}"
            try:
                self.log(f"request {request.number}: {why}")
            except Exception:  # the log's own
                pass

    def _score(self, number, ids, start, k):
        places = self.server.score(ids, start, k)
        top = [pair for _, known in places for pair in known]
        self._call("reply", self.held, number, ints(ids[start:]), c.c_size_t(len(ids) - start),
                   floats([logprob for logprob, _ in places]), ints([id for id, _ in top]), floats([logprob for _, logprob in top]),
                   c.c_size_t(len(top)))

    def _say(self, number, said):
        flags = c.c_uint32(CUT_OFF if said.cut_off else 0)
        if said.ids is None:
            text = said.text.encode()
            self._call("say_text", self.held, number, text, c.c_size_t(len(text)), flags)
        else:
            logprobs = said.logprobs or []
            self._call("say", self.held, number, ints(said.ids), c.c_size_t(len(said.ids)), floats(logprobs), c.c_size_t(len(logprobs)),
                       flags)


def ints(list):
    if not all(-2**31 <= id < 2**31 for id in list):
        raise Failed("an id that no vocabulary has")
    return (c.c_int32 * len(list))(*list)


def floats(list):
    return (c.c_float * len(list))(*list)
