"""Loads a model folder through the C interface and prints eight greedy tokens: smoke.py LIBRARY FOLDER ID...

smoke.py layout prints what this file knows of the header: its ABI, and each field of each struct with offset and size.
"""
import ctypes as c
import sys

# Of the header that the structs below were written from: never the library's, which would then agree with anything.
ABI = 0 << 16 | 11


class EngineOptions(c.Structure):
    _fields_ = [(n, c.c_uint32) for n in ("struct_size", "abi")]
    _fields_ += [(n, c.c_int32) for n in ("backend", "kernels", "compute", "drive", "threads", "max_sessions",
                                          "max_batch_tokens", "log_level")]
    _fields_ += [("host_budget", c.c_uint64), ("kv_budget", c.c_uint64), ("log", c.c_void_p), ("log_user", c.c_void_p)]
    _fields_ += [("device_index", c.c_int32), ("reserved", c.c_uint32), ("device_budget", c.c_uint64)]
    _fields_ += [("prefill_slice_ms", c.c_int32), ("learning_slice_ms", c.c_int32)]
    _fields_ += [("prefix_budget", c.c_uint64)]


class ModelOptions(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("flags", c.c_uint32), ("max_context", c.c_uint64), ("path", c.c_char_p),
                ("path_len", c.c_size_t), ("progress", c.c_void_p), ("progress_user", c.c_void_p)]


class GenOptions(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("flags", c.c_uint32), ("max_tokens", c.c_int32), ("top_k", c.c_int32),
                ("temperature", c.c_float), ("top_p", c.c_float), ("seed", c.c_uint64), ("stop_ids", c.c_void_p),
                ("stop_ids_len", c.c_size_t), ("adapter", c.c_char_p), ("adapter_len", c.c_size_t),
                ("min_p", c.c_float), ("typical_p", c.c_float), ("repetition_penalty", c.c_float),
                ("presence_penalty", c.c_float), ("frequency_penalty", c.c_float), ("no_repeat_ngram_size", c.c_int32),
                ("logit_bias", c.c_void_p), ("logit_bias_len", c.c_size_t), ("stop_strings", c.c_void_p),
                ("stop_strings_len", c.c_size_t), ("top_logprobs", c.c_int32), ("priority", c.c_int32),
                ("time_limit_ms", c.c_uint64), ("cancel", c.c_void_p)]


class Event(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("kind", c.c_int32), ("finish", c.c_int32), ("actor", c.c_int32),
                ("text", c.c_void_p), ("text_len", c.c_size_t), ("ids", c.POINTER(c.c_int32)), ("logprobs", c.c_void_p),
                ("sampled_logprobs", c.c_void_p), ("ids_len", c.c_size_t), ("position", c.c_uint64),
                ("revision", c.c_uint64), ("top_ids", c.c_void_p), ("top_logprobs", c.c_void_p), ("top_k", c.c_size_t),
                ("stop_string", c.c_int32), ("reserved", c.c_int32), ("stop_byte", c.c_uint64), ("stop_token", c.c_uint64),
                ("name", c.c_void_p), ("name_len", c.c_size_t), ("arguments", c.c_void_p), ("arguments_len", c.c_size_t),
                ("call_id", c.c_void_p), ("call_id_len", c.c_size_t), ("call_index", c.c_uint64), ("reason", c.c_void_p),
                ("reason_len", c.c_size_t)]


if sys.argv[1:] == ["layout"]:
    print("abi", ABI)
    for name, kind in (("engine_options", EngineOptions), ("model_options", ModelOptions),
                       ("gen_options", GenOptions), ("event", Event)):
        print(f"squire_{name}", c.sizeof(kind))
        for field, _ in kind._fields_:
            print(f"squire_{name}.{field}", getattr(kind, field).offset, getattr(kind, field).size)
    sys.exit()

squire = c.CDLL(sys.argv[1])
squire.squire_error_message.restype = c.c_char_p


def call(name, *arguments):
    """Runs a call that ends with the error slot; gives its status, raises its error."""
    err = c.c_void_p()
    status = getattr(squire, name)(*arguments, c.byref(err))
    if status < 0:
        raise RuntimeError(squire.squire_error_message(err, None).decode())
    return status


def made(name, *arguments):
    """Runs a call that makes an object."""
    out = c.c_void_p()
    call(name, *arguments, c.byref(out))
    return out


def options(kind, init, *more):
    o = kind()
    getattr(squire, init)(c.byref(o), c.c_size_t(c.sizeof(o)), *more)
    return o


prompt = [int(i) for i in sys.argv[3:]]
folder = sys.argv[2].encode()
engine_options = options(EngineOptions, "squire_engine_options_init", c.c_uint32(ABI))
engine_options.compute = 0  # f32
engine = made("squire_engine_create", c.byref(engine_options))
model_options = options(ModelOptions, "squire_model_options_init")
model_options.path, model_options.path_len = folder, len(folder)
model = made("squire_model_load", engine, c.byref(model_options), None)
session = made("squire_session_create", model)
call("squire_session_sync", session, (c.c_int32 * len(prompt))(*prompt), c.c_size_t(len(prompt)), None)
gen_options = options(GenOptions, "squire_gen_options_init")
gen_options.temperature, gen_options.max_tokens = 0, 8
generation = made("squire_gen_start", session, c.byref(gen_options))
event, ids = options(Event, "squire_event_init"), []
while call("squire_gen_next", generation, -1, c.byref(event)) == 0:
    ids += event.ids[:event.ids_len]
print(*ids)
for release, thing in (("gen", generation), ("session", session), ("model", model), ("engine", engine)):
    getattr(squire, f"squire_{release}_release")(thing)
