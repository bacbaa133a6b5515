/* squire: serve a distilled student and teach it while it works, in one process.
 *
 * Written from the sources in src/ffi; a test fails if they differ. C99 and C++17.
 *
 * Conventions, for every call unless it says otherwise:
 *
 * Objects are opaque and counted. What a call makes belongs to the caller, who ends it with its _release; _retain adds
 * a reference where one exists. Release with NULL does nothing; any order, any thread, also in a callback; an object
 * keeps alive what it needs. A call under way keeps its objects too.
 *
 * In: text is pointer and length, UTF-8, need not end in NUL; NULL is allowed with length 0. Arrays likewise. What the
 * caller passes is copied before the call returns.
 *
 * Out: pointers that an accessor gives (_data, _message, _row) live as long as their object. Out-parameters come last
 * but for the error. On failure, and on outcomes without a result, an object out-parameter is set to NULL and every
 * other one is left as it was.
 *
 * Errors: a call that can fail gives a squire_status and, through its last parameter, an error object. That parameter
 * may be NULL; otherwise it must point to a pointer that is NULL, else the call answers SQUIRE_E_ARGUMENT and does
 * nothing. Positive statuses are outcomes and make no error object.
 *
 * Structs: those with struct_size are set up by their _init function with sizeof, so that a program and a library of
 * different ages understand each other. They only grow at their end.
 *
 * Threads: any call on any thread, on any object. Calls that change the same session, episode or distiller do not wait
 * for each other: the second answers SQUIRE_E_BUSY. Inside a callback, calls that give a status answer SQUIRE_E_STATE;
 * cancel, retain, release and accessors are allowed.
 *
 * Misuse that can be seen (NULL, wrong kind of object, an object released before, wrong sizes, wrong order) gives a
 * status. What cannot be seen is the caller's to keep: pointers are readable and writable for their lengths, and no
 * object is used after its last release.
 *
 * Defects: a panic inside the library never crosses into the caller. The call answers SQUIRE_E_PANIC, and the object it
 * worked on answers SQUIRE_E_POISONED from then on to all but release. Nothing is written to standard output or error.
 *
 * A process made by fork() cannot use the objects of its parent: calls answer SQUIRE_E_STATE, release does nothing.
 *
 * The part under SQUIRE_EXPERIMENTAL may change between minor versions. */

#ifndef SQUIRE_H
#define SQUIRE_H

#include <stddef.h>
#include <stdint.h>

/* The version that this header belongs to. */
#define SQUIRE_VERSION "0.1.0"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- version and build ----------------------------------------------------------------------------------- */

#define SQUIRE_ABI_MAJOR 0 /* Of the ABI that this header describes: changes when something is removed or means something else. */
#define SQUIRE_ABI_MINOR 0 /* Of the same: counts the additions within a major. */

/* The ABI of the library at hand: major * 65536 + minor. squire_engine_create refuses a program of another major;
 * while the major is 0, the interface may still change between releases. Any thread, also inside a callback. */
uint32_t squire_abi_version(void);

/* The library's version, such as "0.1.0", ended by NUL, valid for the life of the process. Any thread, also inside a
 * callback. */
const char *squire_version(void);

/* What was built and what this machine can run, as a JSON object: version, abi, profile, target, backends,
 * kernel_sets (those of this machine, slowest first). Ended by NUL, valid for the life of the process. Keys may be
 * added. Any thread, also inside a callback. */
const char *squire_build_json(void);

/* ---- status ---------------------------------------------------------------------------------------------- */

/* What a call answers: 0 is success, a positive number an outcome, a negative one an error.
 * Numbers are never reused; treat an unknown negative number as an error. */
typedef int32_t squire_status;

#define SQUIRE_OK 0 /* The call did what was asked. */
#define SQUIRE_END 1 /* There is nothing more to come. */
#define SQUIRE_TIMEOUT 2 /* The time given ran out first. */
#define SQUIRE_CANCELLED 3 /* The call was cancelled; the state stands at the last whole token. */
#define SQUIRE_E_ARGUMENT (-1) /* A parameter is wrong in itself: NULL, out of range, not UTF-8, unknown key. */
#define SQUIRE_E_STATE (-2) /* The call is not allowed now; the message names the expected one. */
#define SQUIRE_E_BUSY (-3) /* Another call is working on this object. */
#define SQUIRE_E_ABI (-4) /* The caller was compiled against an incompatible header. */
#define SQUIRE_E_UNSUPPORTED (-5) /* Understood, but not built, or not supported by this version. */
#define SQUIRE_E_IO (-6) /* The operating system refused a file operation. */
#define SQUIRE_E_FORMAT (-7) /* A file's bytes contradict its format. */
#define SQUIRE_E_MISMATCH (-8) /* Two things that must agree do not. */
#define SQUIRE_E_HOST_MEMORY (-9) /* Host memory could not be had. */
#define SQUIRE_E_DEVICE_MEMORY (-10) /* Device memory could not be had. */
#define SQUIRE_E_BUDGET (-11) /* A budget set by the caller would be exceeded. */
#define SQUIRE_E_CONTEXT_FULL (-12) /* The session has no room for more tokens. */
#define SQUIRE_E_GRAMMAR (-13) /* A grammar is wrong or cannot be satisfied. */
#define SQUIRE_E_TEMPLATE (-14) /* The chat template failed. */
#define SQUIRE_E_DEVICE (-15) /* The device reported an error. */
#define SQUIRE_E_DEVICE_LOST (-16) /* The device is gone for this process. */
#define SQUIRE_E_TEACHER (-17) /* The teacher failed or did not answer in time. */
#define SQUIRE_E_DIVERGED (-18) /* An update is not finite; the weights are unchanged. */
#define SQUIRE_E_POISONED (-19) /* An earlier panic made this object unusable; only release works. */
#define SQUIRE_E_PANIC (-20) /* A defect of squire was caught at the boundary. */

/* The name of a status as written here, such as "SQUIRE_E_IO", ended by NUL and valid for the life of the
 * process; "SQUIRE_UNKNOWN" for a number without one. Never NULL. Any thread, also inside a callback. */
const char *squire_status_name(squire_status status);

/* ---- errors ---------------------------------------------------------------------------------------------- */

/* Why a call failed: the status, a stable detail code, a message and a JSON document. */
typedef struct squire_error squire_error;

/* The status that the failing call answered; SQUIRE_OK for NULL. Any thread, also inside a callback. */
squire_status squire_error_status(const squire_error *error);

/* The stable detail code, one of SQUIRE_DETAIL_...; 0 for NULL. Any thread, also inside a callback. */
int32_t squire_error_detail(const squire_error *error);

/* The message: UTF-8, ended by NUL, its length without the NUL in *len unless len is NULL. It lives as long as the
 * error. NULL and 0 for NULL. The text may change between versions. Any thread, also inside a callback. */
const char *squire_error_message(const squire_error *error, size_t *len);

/* The error as a JSON object: status, status_code, detail, detail_code, message, cause (the messages before each
 * context was put in front, nearest first) and bytes ({"needed", "free"} for memory and budget faults, else null).
 * UTF-8, ended by NUL, its length without the NUL in *len unless len is NULL; lives as long as the error. NULL and 0
 * for NULL. Keys may be added. Any thread, also inside a callback. */
const char *squire_error_json(const squire_error *error, size_t *len);

/* Frees an error. NULL is allowed. Any thread, also inside a callback. */
void squire_error_release(squire_error *error);

/* What squire_error_detail gives: one number for every distinguishable fault, never reused. */
#define SQUIRE_DETAIL_NULL_POINTER 101 /* A pointer that must not be NULL was NULL. */
#define SQUIRE_DETAIL_BAD_LENGTH 102 /* A length or extent is out of range. */
#define SQUIRE_DETAIL_NOT_UTF8 103 /* Text that must be UTF-8 is not. */
#define SQUIRE_DETAIL_ID_OUT_OF_RANGE 104 /* A token id lies outside the vocabulary. */
#define SQUIRE_DETAIL_BAD_OPTION 105 /* An option's value is out of range. */
#define SQUIRE_DETAIL_BAD_JSON 106 /* A JSON document does not parse. */
#define SQUIRE_DETAIL_UNKNOWN_KEY 107 /* A JSON document has a key that is not known. */
#define SQUIRE_DETAIL_BAD_VALUE 108 /* A JSON value has the wrong type or range. */
#define SQUIRE_DETAIL_ERROR_NOT_NULL 109 /* An error out-parameter did not point to NULL. */
#define SQUIRE_DETAIL_FOREIGN_HANDLE 110 /* Handles that belong to different engines or models were mixed. */
#define SQUIRE_DETAIL_UNKNOWN_PRESET 111 /* A preset or method name is not known. */
#define SQUIRE_DETAIL_MISALIGNED 112 /* A pointer is not aligned for what it points to. */
#define SQUIRE_DETAIL_WRONG_HANDLE 113 /* A handle is not, or no longer, an object of the expected kind. */
#define SQUIRE_DETAIL_OUT_OF_ORDER 201 /* The call came out of order. */
#define SQUIRE_DETAIL_INSIDE_CALLBACK 202 /* A call that is not allowed inside a callback. */
#define SQUIRE_DETAIL_AFTER_FORK 203 /* The object belongs to the process before fork(). */
#define SQUIRE_DETAIL_NOTHING_TO_LEARN 204 /* There is nothing to build an update from. */
#define SQUIRE_DETAIL_ENGINE_STOPPED 205 /* The engine has been shut down. */
#define SQUIRE_DETAIL_STALE_UPDATE 206 /* The update was already applied, or a newer one was. */
#define SQUIRE_DETAIL_EMPTY_SESSION 207 /* There is no token to continue from. */
#define SQUIRE_DETAIL_SESSION_BUSY 301 /* The session is being worked on. */
#define SQUIRE_DETAIL_DISTILLER_BUSY 302 /* The distiller is building an update. */
#define SQUIRE_DETAIL_STRUCT_SIZE 401 /* `struct_size` is too small, too large with a non-zero tail, or not a multiple of 8. */
#define SQUIRE_DETAIL_ABI_MAJOR 402 /* The header's ABI major differs from the library's. */
#define SQUIRE_DETAIL_UNSUPPORTED_ARCHITECTURE 501 /* `model_type` or architecture is not served. */
#define SQUIRE_DETAIL_UNSUPPORTED_ROPE 502 /* The rope type is not implemented. */
#define SQUIRE_DETAIL_UNSUPPORTED_SLIDING_WINDOW 503 /* Sliding-window attention is asked for. */
#define SQUIRE_DETAIL_UNSUPPORTED_BIAS 504 /* Attention bias is asked for. */
#define SQUIRE_DETAIL_UNSUPPORTED_ACTIVATION 505 /* The activation function is not implemented. */
#define SQUIRE_DETAIL_UNSUPPORTED_DTYPE 506 /* The weight dtype is not implemented. */
#define SQUIRE_DETAIL_UNSUPPORTED_TOKENIZER 507 /* The tokenizer uses a part that squire lacks. */
#define SQUIRE_DETAIL_UNSUPPORTED_BACKEND 508 /* This build has no such backend. */
#define SQUIRE_DETAIL_UNSUPPORTED_KERNEL_SET 509 /* This machine has no such kernel set. */
#define SQUIRE_DETAIL_UNSUPPORTED_METHOD 510 /* A knob combination that no trainer here implements. */
#define SQUIRE_DETAIL_UNSUPPORTED_QUANTISATION 511 /* A quantisation entry in config.json. */
#define SQUIRE_DETAIL_CANNOT_OPEN 601 /* A file could not be opened. */
#define SQUIRE_DETAIL_CANNOT_READ 602 /* A file could not be read. */
#define SQUIRE_DETAIL_CANNOT_WRITE 603 /* A file could not be written, synced or renamed. */
#define SQUIRE_DETAIL_CANNOT_MAP 604 /* A file could not be mapped. */
#define SQUIRE_DETAIL_MISSING_FILE 605 /* The folder lacks a file that must be there. */
#define SQUIRE_DETAIL_SAFETENSORS_HEADER_LENGTH 701 /* The safetensors header's length does not fit the file. */
#define SQUIRE_DETAIL_SAFETENSORS_HEADER 702 /* The safetensors header is not valid JSON of the right form. */
#define SQUIRE_DETAIL_SAFETENSORS_OFFSETS 703 /* A tensor's offsets lie outside the file or run backwards. */
#define SQUIRE_DETAIL_SAFETENSORS_OVERLAP 704 /* Tensors overlap or leave holes. */
#define SQUIRE_DETAIL_SAFETENSORS_SHAPE 705 /* A tensor's shape overflows or does not match its byte count. */
#define SQUIRE_DETAIL_SAFETENSORS_DTYPE 706 /* A tensor's dtype is not known. */
#define SQUIRE_DETAIL_SAFETENSORS_DUPLICATE 707 /* A name occurs twice. */
#define SQUIRE_DETAIL_INDEX_FORM 708 /* The shard index is not of the right form. */
#define SQUIRE_DETAIL_INDEX_PATH 709 /* The shard index names a file outside the folder. */
#define SQUIRE_DETAIL_INDEX_TENSOR 710 /* The shard index names a tensor that its shard lacks. */
#define SQUIRE_DETAIL_CONFIG_FORM 711 /* config.json is not valid JSON or lacks a field. */
#define SQUIRE_DETAIL_CONFIG_CONTRADICTION 712 /* config.json contradicts itself. */
#define SQUIRE_DETAIL_TOKENIZER_FORM 713 /* tokenizer.json is broken. */
#define SQUIRE_DETAIL_TEMPLATE_FORM 714 /* The chat template does not compile. */
#define SQUIRE_DETAIL_CHECKPOINT_FORM 715 /* A checkpoint is incomplete or broken. */
#define SQUIRE_DETAIL_GENERATION_CONFIG_FORM 716 /* generation_config.json is broken. */
#define SQUIRE_DETAIL_TOKENIZER_CONFIG_FORM 717 /* tokenizer_config.json is broken. */
#define SQUIRE_DETAIL_TENSOR_MISSING 801 /* A tensor that the configuration asks for is missing. */
#define SQUIRE_DETAIL_TENSOR_EXTRA 802 /* A tensor that the configuration does not know. */
#define SQUIRE_DETAIL_TENSOR_SHAPE 803 /* A tensor's shape differs from the configuration's. */
#define SQUIRE_DETAIL_TENSOR_DTYPE 804 /* Tensors that must share a dtype do not. */
#define SQUIRE_DETAIL_VOCABULARY_SIZE 805 /* The tokenizer has ids beyond the model's vocabulary. */
#define SQUIRE_DETAIL_TEACHER_VOCABULARY 806 /* Teacher and student do not share one vocabulary. */
#define SQUIRE_DETAIL_CHECKPOINT_MISMATCH 807 /* A checkpoint belongs to another model or configuration. */
#define SQUIRE_DETAIL_OUT_OF_HOST_MEMORY 901 /* A buffer could not be allocated. */
#define SQUIRE_DETAIL_KV_BUDGET 1101 /* The KV budget is used up. */
#define SQUIRE_DETAIL_HOST_BUDGET 1102 /* The plan does not fit the host budget. */
#define SQUIRE_DETAIL_SESSION_BUDGET 1103 /* Too many sessions. */
#define SQUIRE_DETAIL_CONTEXT_FULL 1201 /* The session's context has no room. */
#define SQUIRE_DETAIL_TEMPLATE_FAILED 1401 /* The chat template raised an error or produced no text. */
#define SQUIRE_DETAIL_NO_TEMPLATE 1402 /* The model folder has no chat template. */
#define SQUIRE_DETAIL_TEACHER_FAILED 1701 /* The local teacher failed. */
#define SQUIRE_DETAIL_NOT_FINITE 1801 /* The loss or a gradient is not finite. */
#define SQUIRE_DETAIL_POISONED 1901 /* The object was poisoned by an earlier panic. */
#define SQUIRE_DETAIL_PANIC 2001 /* A panic was caught. */

/* ---- callbacks ------------------------------------------------------------------------------------------- */

/* Takes a log line. level: 0 error, 1 warning, 2 info, 3 debug, 4 trace. target names the part of squire that speaks.
 * Both texts are UTF-8, do not end in NUL, and live until the callback returns. Called from any of the library's
 * threads, several at once; in caller-driven mode only inside a call. Must not throw or jump out. */
typedef void (*squire_log_fn)(void *user,
                              int32_t level,
                              const char *target,
                              size_t target_len,
                              const char *message,
                              size_t message_len);

/* Hears of progress: phase (UTF-8, not ended by NUL, lives until the callback returns), and how much of total is
 * done. Return 0 to go on, anything else to stop: the call then answers SQUIRE_CANCELLED. Called on the thread of the
 * call that was given it. Must not throw or jump out. */
typedef int32_t (*squire_progress_fn)(void *user, const char *phase, size_t phase_len, uint64_t done, uint64_t total);

/* ---- results --------------------------------------------------------------------------------------------- */

/* UTF-8 text or a JSON document, owned by the library. Freed by squire_text_release. */
typedef struct squire_text squire_text;

/* The text: UTF-8, ended by NUL, its length without the NUL in *len unless len is NULL. It lives as long as the
 * object. NULL and 0 for NULL. Any thread, also inside a callback. */
const char *squire_text_data(const squire_text *text, size_t *len);

/* Frees a text. NULL is allowed. Any thread, also inside a callback. */
void squire_text_release(squire_text *text);

/* An array of token ids, owned by the library. Freed by squire_tokens_release. */
typedef struct squire_tokens squire_tokens;

/* The ids, their number in *len unless len is NULL. They live as long as the object. NULL and 0 for NULL; with no
 * ids the pointer is not NULL but points to nothing. Any thread, also inside a callback. */
const int32_t *squire_tokens_data(const squire_tokens *tokens, size_t *len);

/* Frees the ids. NULL is allowed. Any thread, also inside a callback. */
void squire_tokens_release(squire_tokens *tokens);

/* Log-probabilities of given tokens, owned by the library. Freed by squire_scores_release. */
typedef struct squire_scores squire_scores;

/* Row i: the log-probability (nats, temperature 1) of the i-th given token, and the k most probable ids with theirs,
 * best first. Each out-parameter may be NULL if not wanted; the arrays live as long as the object. An i at or past
 * the number of tokens gives SQUIRE_E_ARGUMENT. Costs no device work. Any thread. */
squire_status squire_scores_row(const squire_scores *scores,
                                size_t i,
                                float *logprob,
                                const int32_t **top_ids,
                                const float **top_logprobs,
                                size_t *k,
                                squire_error **err);

/* Frees the scores. NULL is allowed. Any thread, also inside a callback. */
void squire_scores_release(squire_scores *scores);

/* ---- cancelling ------------------------------------------------------------------------------------------ */

/* A flag that stops the calls it was given to. Once set it stays set. Shared: see squire_cancel_retain. */
typedef struct squire_cancel squire_cancel;

/* Makes a flag that is not set. The caller releases it. Never NULL. Any thread. */
squire_cancel *squire_cancel_create(void);

/* Sets the flag: calls that were given it answer SQUIRE_CANCELLED at the next token or prefill chunk. NULL does
 * nothing. Never blocks. Any thread, also inside a callback. */
void squire_cancel_set(squire_cancel *cancel);

/* Adds a reference and gives the same pointer; NULL for NULL. Any thread, also inside a callback. */
squire_cancel *squire_cancel_retain(squire_cancel *cancel);

/* Drops a reference; the last one frees the flag. Calls under way keep it. NULL is allowed. Any thread, also inside
 * a callback. */
void squire_cancel_release(squire_cancel *cancel);

#ifdef __cplusplus
}
#endif

#endif /* SQUIRE_H */
