"""squire's C interface as Python objects: what a distillation needs, by ctypes alone.

Every object frees itself; as a context manager it does so at the end of the block. A call that fails raises Error.
"""
import ctypes as c
import json
import os

ABI = 0 << 16 | 11  # of the header that this file was written from
F32, BF16 = 0, 1
STOP, STUDENT, TEACHER, REPLAY = range(4)  # who acts
END = 1  # status: nothing more will come
CONTEXT_FULL, TEACHER_FAILED = -12, -17  # statuses
HAS_REWARD = 1  # flag of an outcome

lib = None


def open_library(path):
    """Has to come first."""
    global lib
    lib = c.CDLL(os.fspath(path))
    lib.squire_error_message.restype = lib.squire_text_data.restype = c.c_char_p


class Error(Exception):
    def __init__(self, slot):
        super().__init__(lib.squire_error_message(slot, None).decode())
        self.status = lib.squire_error_status(slot)
        lib.squire_error_release(slot)


def call(name, *arguments):
    """Makes a call that ends with the slot for an error; gives its status."""
    slot = c.c_void_p()
    status = getattr(lib, f"squire_{name}")(*arguments, c.byref(slot))
    if status < 0:
        raise Error(slot)
    return status


def text(value):
    """A str as the C interface takes it: pointer, length."""
    data = value.encode()
    return data, c.c_size_t(len(data))


def document(value):
    return text(json.dumps(value))


class Struct(c.Structure):
    """A struct with an _init of its own, which fills in the defaults."""

    def __init__(self, *more):
        super().__init__()
        getattr(lib, f"squire_{self.NAME}_init")(c.byref(self), c.c_size_t(c.sizeof(self)), *more)


class EngineOptions(Struct):
    NAME = "engine_options"
    _fields_ = [("struct_size", c.c_uint32), ("abi", c.c_uint32), ("backend", c.c_int32), ("kernels", c.c_int32),
                ("compute", c.c_int32), ("drive", c.c_int32), ("threads", c.c_int32), ("max_sessions", c.c_int32),
                ("max_batch_tokens", c.c_int32), ("log_level", c.c_int32), ("host_budget", c.c_uint64),
                ("kv_budget", c.c_uint64), ("log", c.c_void_p), ("log_user", c.c_void_p), ("device_index", c.c_int32),
                ("reserved", c.c_uint32), ("device_budget", c.c_uint64), ("prefill_slice_ms", c.c_int32),
                ("learning_slice_ms", c.c_int32), ("prefix_budget", c.c_uint64)]


class ModelOptions(Struct):
    NAME = "model_options"
    _fields_ = [("struct_size", c.c_uint32), ("flags", c.c_uint32), ("max_context", c.c_uint64), ("path", c.c_char_p),
                ("path_len", c.c_size_t), ("progress", c.c_void_p), ("progress_user", c.c_void_p)]


class GenOptions(Struct):
    NAME = "gen_options"
    _fields_ = [("struct_size", c.c_uint32), ("flags", c.c_uint32), ("max_tokens", c.c_int32), ("top_k", c.c_int32),
                ("temperature", c.c_float), ("top_p", c.c_float), ("seed", c.c_uint64), ("stop_ids", c.c_void_p),
                ("stop_ids_len", c.c_size_t), ("adapter", c.c_char_p), ("adapter_len", c.c_size_t),
                ("min_p", c.c_float), ("typical_p", c.c_float), ("repetition_penalty", c.c_float),
                ("presence_penalty", c.c_float), ("frequency_penalty", c.c_float), ("no_repeat_ngram_size", c.c_int32),
                ("logit_bias", c.c_void_p), ("logit_bias_len", c.c_size_t), ("stop_strings", c.c_void_p),
                ("stop_strings_len", c.c_size_t), ("top_logprobs", c.c_int32), ("priority", c.c_int32)]


class Event(Struct):
    NAME = "event"
    _fields_ = [("struct_size", c.c_uint32), ("kind", c.c_int32), ("finish", c.c_int32), ("actor", c.c_int32),
                ("text", c.c_void_p), ("text_len", c.c_size_t), ("ids", c.POINTER(c.c_int32)), ("logprobs", c.c_void_p),
                ("sampled_logprobs", c.c_void_p), ("ids_len", c.c_size_t), ("position", c.c_uint64),
                ("revision", c.c_uint64), ("top_ids", c.c_void_p), ("top_logprobs", c.c_void_p), ("top_k", c.c_size_t),
                ("stop_string", c.c_int32), ("reserved", c.c_int32), ("stop_byte", c.c_uint64), ("stop_token", c.c_uint64),
                ("name", c.c_void_p), ("name_len", c.c_size_t), ("arguments", c.c_void_p), ("arguments_len", c.c_size_t),
                ("call_id", c.c_void_p), ("call_id_len", c.c_size_t), ("call_index", c.c_uint64), ("reason", c.c_void_p),
                ("reason_len", c.c_size_t)]


class Decision(Struct):
    NAME = "decision"
    _fields_ = [("struct_size", c.c_uint32), ("actor", c.c_int32), ("reason", c.c_int32), ("train_on_this", c.c_int32),
                ("turn", c.c_uint32), ("horizon", c.c_uint32), ("probability", c.c_double), ("episode", c.c_uint64),
                ("step", c.c_uint64), ("revision", c.c_uint64)]


class Object:
    """Owns an object of the library: what `call` makes goes to it, and with it."""
    _as_parameter_ = None

    def __init__(self, maker, *arguments):
        out = c.c_void_p()
        call(maker, *arguments, c.byref(out))
        self._as_parameter_ = out

    def release(self):
        if self._as_parameter_:
            getattr(lib, f"squire_{self.KIND}_release")(self)
            self._as_parameter_ = None

    __del__ = release

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()


class Document(Object):
    """What the library answers as JSON."""
    KIND = "text"

    @classmethod
    def read(cls, maker, *arguments):
        with cls(maker, *arguments) as made:
            return json.loads(lib.squire_text_data(made, None))


class Engine(Object):
    KIND = "engine"

    def __init__(self, compute=BF16, threads=0):
        options = EngineOptions(c.c_uint32(ABI))
        options.compute, options.threads = compute, threads
        super().__init__("engine_create", c.byref(options))

    def metrics(self):
        return Document.read("engine_metrics", self)


class Model(Object):
    KIND = "model"

    def __init__(self, engine, folder, max_context=0):
        options = ModelOptions()
        path = os.fsencode(folder)
        options.path, options.path_len, options.max_context = path, len(path), max_context
        super().__init__("model_load", engine, c.byref(options), None)

    def info(self):
        return Document.read("model_info", self)

    def save(self, folder):
        """Writes a model folder, with what was published in its weights."""
        call("model_save", self, *text(os.fspath(folder)))

    def load_adapter(self, name, folder):
        """Reads an adapter that save_adapter or PEFT wrote, to be used under that name."""
        call("adapter_load", self, *text(name), *text(os.fspath(folder)), None)

    def save_adapter(self, folder):
        """Writes the adapter that was published, as PEFT reads it."""
        call("adapter_save", self, None, c.c_size_t(0), *text(os.fspath(folder)))


class Teacher(Object):
    """A teacher in the host's own code, whose requests bindings/python/squire_teachers.py answers."""
    KIND = "teacher"

    def __init__(self, **options):
        super().__init__("teacher_create", *document(options))


class Distiller(Object):
    KIND = "distiller"

    def __init__(self, student, settings, teacher=None, checkpoint=None):
        """`teacher` is a Model or a Teacher. Goes on from the checkpoint if there is one in that folder."""
        step = c.c_uint64()
        taught = "_taught" if isinstance(teacher, Teacher) else ""
        path = checkpoint and text(os.fspath(checkpoint))
        if path and call("checkpoint_probe", *path, c.byref(step)) != END:
            super().__init__("distiller_resume" + taught, student, teacher, *document(settings), *path)
        else:
            super().__init__("distiller_create" + taught, student, teacher, *document(settings))
        self.step = step.value

    def episode(self, **spec):
        return Episode("episode_begin", self, *document(spec))

    def update(self):
        """One step of the optimiser from the episodes that ended; gives its report."""
        with Update("update_build", self, c.c_uint32(0), None, None, None) as update:
            call("update_apply", self, update)
            self.step += 1
            return Document.read("update_report", update)

    def check_teacher(self, timeout_ms=0, **text):
        """Whether the teacher says the same twice; `text` is one of ids, text and tokens."""
        return Document.read("distiller_check_teacher", self, *document(text), c.c_uint64(timeout_ms), None)

    def publish(self):
        """From now on new episodes are played by what was learnt."""
        call("distiller_publish", self, None)

    def save(self, folder):
        """Writes a checkpoint, from which the run can go on."""
        call("distiller_save", self, *text(os.fspath(folder)))


class Update(Object):
    KIND = "update"


class Episode(Object):
    KIND = "episode"

    def observe(self, messages):
        """Shows messages; gives their number of tokens."""
        added = c.c_uint64()
        call("episode_observe", self, *document(messages), c.byref(added))
        return added.value

    def decide(self):
        decision = Decision()
        call("episode_decide", self, c.byref(decision))
        return decision

    def act(self, max_tokens=0, temperature=None, stop_ids=()):
        """Starts the turn of whoever was decided to act; `stop_ids` end it besides the model's own."""
        options, stops = GenOptions(), (c.c_int32 * len(stop_ids))(*stop_ids)
        options.max_tokens, options.stop_ids, options.stop_ids_len = max_tokens, c.cast(stops, c.c_void_p), len(stop_ids)
        if temperature is not None:
            options.temperature = temperature
        return Generation("episode_act", self, c.byref(options))

    def replay(self, action):
        """Writes down what a demonstration says in this turn."""
        call("episode_replay_text", self, *text(action))

    def outcome(self, reward):
        """Ends the turn."""
        call("episode_outcome", self, c.c_double(reward), c.c_uint32(HAS_REWARD))

    def end(self, score, success):
        call("episode_end", self, c.c_double(score), c.c_int32(success))

    def trace(self):
        return Document.read("episode_trace", self)


class Generation(Object):
    KIND = "gen"

    def text(self):
        """Waits for the end; gives all that was said."""
        event, said = Event(), b""
        while call("gen_next", self, c.c_int32(-1), c.byref(event)) != END:
            said += c.string_at(event.text, event.text_len)
        return said.decode()
