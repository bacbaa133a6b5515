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
 * Threads: any call on any thread, on any object. Short calls on one session or episode take their turn. While it
 * generates, scores or prefills, or an update is built or applied on the distiller, other calls that need the same
 * answer SQUIRE_E_BUSY at once. Inside a callback, calls that give a status answer SQUIRE_E_STATE; cancel, retain,
 * release and accessors are allowed. Progress and tensor callbacks run inside their call, whose objects are still busy.
 *
 * Misuse that can be seen (NULL, wrong kind of object, an object released before, wrong sizes, wrong order) gives a
 * status. What cannot be seen is the caller's to keep: pointers are readable and writable for their lengths, and no
 * object is used after its last release.
 *
 * Defects: a panic inside the library never crosses into the caller. The call answers SQUIRE_E_PANIC, and the object it
 * worked on answers SQUIRE_E_POISONED from then on to all but release. Nothing is written to standard output or error.
 *
 * Memory: what grows with a model, a context, a batch, a text or a document is asked for, and where it cannot be had the
 * call answers SQUIRE_E_HOST_MEMORY and changes nothing. Documents and templates are bounded in bytes and values, and room
 * for what parsing them takes is asked for beforehand. What is left are small allocations, some kilobytes a call, and those
 * of the parsers while others take the memory that was just found free: where these fail, the process ends, as everywhere
 * in C++ and Rust. On a thread for which the C library can make no arena (64 to 128 MiB of address space) that is likelier.
 *
 * A process made by fork() cannot use the objects of its parent: calls answer SQUIRE_E_STATE, release does nothing. It may
 * make an engine of its own.
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
#define SQUIRE_ABI_MINOR 11 /* Of the same: counts the additions within a major. */
#define SQUIRE_ABI ((SQUIRE_ABI_MAJOR << 16) | SQUIRE_ABI_MINOR) /* What the _init function of the engine's options is told of the header in use. */

/* The ABI of the library at hand: major * 65536 + minor. squire_engine_create refuses a program of another major;
 * while the major is 0, the interface may still change between releases. Any thread, also inside a callback. */
uint32_t squire_abi_version(void);

/* The library's version, such as "0.1.0", ended by NUL, valid for the life of the process. Any thread, also inside a
 * callback. */
const char *squire_version(void);

/* What was built and what this machine can run, as a JSON object: version, abi, profile, target, backends (built; whether
 * a device is there is squire_device_probe's to say),
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
#define SQUIRE_DETAIL_NO_SUCH_DEVICE 114 /* The machine has no device of this index. */
#define SQUIRE_DETAIL_UNKNOWN_ADAPTER 115 /* No adapter of this name is loaded. */
#define SQUIRE_DETAIL_UNKNOWN_REVISION 116 /* No revision of this number is kept to go back to. */
#define SQUIRE_DETAIL_OUT_OF_ORDER 201 /* The call came out of order. */
#define SQUIRE_DETAIL_INSIDE_CALLBACK 202 /* A call that is not allowed inside a callback. */
#define SQUIRE_DETAIL_AFTER_FORK 203 /* The object belongs to the process before fork(). */
#define SQUIRE_DETAIL_NOTHING_TO_LEARN 204 /* There is nothing to build an update from. */
#define SQUIRE_DETAIL_ENGINE_STOPPED 205 /* The engine has been shut down. */
#define SQUIRE_DETAIL_STALE_UPDATE 206 /* The update was already applied, or a newer one was. */
#define SQUIRE_DETAIL_EMPTY_SESSION 207 /* There is no token to continue from. */
#define SQUIRE_DETAIL_RUN_COMPLETE 210 /* The run's steps are all done. */
#define SQUIRE_DETAIL_TEACHER_REQUEST 211 /* No teacher's request of this number waits for an answer. */
#define SQUIRE_DETAIL_SESSION_BUSY 301 /* The session is being worked on. */
#define SQUIRE_DETAIL_DISTILLER_BUSY 302 /* The distiller is building an update. */
#define SQUIRE_DETAIL_RECORD_IN_USE 303 /* Another distiller writes into the run's folder. */
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
#define SQUIRE_DETAIL_NO_DEVICE 512 /* This machine has no driver, too old a driver, or no usable device. */
#define SQUIRE_DETAIL_NO_KERNELS 513 /* This build has no kernels for the device or for the model's extents. */
#define SQUIRE_DETAIL_UNSUPPORTED_ADAPTER 514 /* A kind of adapter that squire does not compute. */
#define SQUIRE_DETAIL_NO_DESCRIPTOR 515 /* The platform has no descriptor for a queue, or none is left. */
#define SQUIRE_DETAIL_CANNOT_OPEN 601 /* A file could not be opened. */
#define SQUIRE_DETAIL_CANNOT_READ 602 /* A file could not be read. */
#define SQUIRE_DETAIL_CANNOT_WRITE 603 /* A file could not be written, synced or renamed. */
#define SQUIRE_DETAIL_CANNOT_MAP 604 /* A file could not be mapped. */
#define SQUIRE_DETAIL_MISSING_FILE 605 /* The folder lacks a file that must be there. */
#define SQUIRE_DETAIL_NOT_A_MODEL 606 /* The path leads to something else than a folder with a model in it. */
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
#define SQUIRE_DETAIL_NOT_THE_CONTENT 718 /* A file holds something else than its content: a Git LFS pointer, a web page, nothing. */
#define SQUIRE_DETAIL_TENSOR_NAMES 719 /* Two tensors' names are one, or two models', once the prefixes of wrappers are taken off. */
#define SQUIRE_DETAIL_ADAPTER_FORM 720 /* An adapter's configuration is broken or says what cannot be. */
#define SQUIRE_DETAIL_RECORD_FORM 721 /* A run's record or metrics are broken, or are none. */
#define SQUIRE_DETAIL_RECORD_VERSION 722 /* A run's record is of a later form. */
#define SQUIRE_DETAIL_TENSOR_MISSING 801 /* A tensor that the configuration asks for is missing. */
#define SQUIRE_DETAIL_TENSOR_EXTRA 802 /* A tensor that the configuration does not know. */
#define SQUIRE_DETAIL_TENSOR_SHAPE 803 /* A tensor's shape differs from the configuration's. */
#define SQUIRE_DETAIL_TENSOR_DTYPE 804 /* Tensors that must share a dtype do not. Not told any more: each tensor has its own dtype. */
#define SQUIRE_DETAIL_VOCABULARY_SIZE 805 /* The tokenizer has ids beyond the model's vocabulary. */
#define SQUIRE_DETAIL_TEACHER_VOCABULARY 806 /* Teacher and student do not share one vocabulary. */
#define SQUIRE_DETAIL_CHECKPOINT_MISMATCH 807 /* A checkpoint belongs to another model or configuration. */
#define SQUIRE_DETAIL_UNMERGED_ADAPTER 808 /* The folder holds an adapter that is not merged into its base model. */
#define SQUIRE_DETAIL_ADAPTER_MISMATCH 809 /* An adapter belongs to another base, or has another rank or other targets than are wanted. */
#define SQUIRE_DETAIL_TEACHER_REPLY 810 /* An answer does not fit the teacher's request. */
#define SQUIRE_DETAIL_RECORD_MISMATCH 811 /* A record is of another run or another vocabulary. */
#define SQUIRE_DETAIL_OUT_OF_HOST_MEMORY 901 /* A buffer could not be allocated. */
#define SQUIRE_DETAIL_OUT_OF_DEVICE_MEMORY 1001 /* Device memory could not be had. */
#define SQUIRE_DETAIL_KV_BUDGET 1101 /* The KV budget is used up. */
#define SQUIRE_DETAIL_HOST_BUDGET 1102 /* The plan does not fit the host budget. */
#define SQUIRE_DETAIL_SESSION_BUDGET 1103 /* Too many sessions. */
#define SQUIRE_DETAIL_DEVICE_BUDGET 1104 /* The device budget is used up, or the plan does not fit it. */
#define SQUIRE_DETAIL_CONTEXT_FULL 1201 /* The session's context has no room. */
#define SQUIRE_DETAIL_TEMPLATE_FAILED 1401 /* The chat template raised an error or produced no text. */
#define SQUIRE_DETAIL_NO_TEMPLATE 1402 /* The model folder has no chat template. */
#define SQUIRE_DETAIL_DEVICE_ERROR 1501 /* The device or its driver reported an error. */
#define SQUIRE_DETAIL_DEVICE_LOST 1601 /* The device is gone for this process; release the engine. */
#define SQUIRE_DETAIL_TEACHER_FAILED 1701 /* The teacher failed. */
#define SQUIRE_DETAIL_TEACHER_SILENT 1702 /* The host's teacher did not answer in time. */
#define SQUIRE_DETAIL_TEACHER_CLOSED 1703 /* The host closed its teacher. */
#define SQUIRE_DETAIL_NOT_FINITE 1801 /* The loss, a gradient, or the logits of a row are not finite. */
#define SQUIRE_DETAIL_UPDATE_TOO_FAR 1810 /* An applied update moved the student further than the settings let be published. */
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

/* ---- engine ---------------------------------------------------------------------------------------------- */

#define SQUIRE_BACKEND_CPU 0 /* backend: the processor. */
#define SQUIRE_BACKEND_CUDA 1 /* backend: an NVIDIA GPU; SQUIRE_E_UNSUPPORTED in a build or on a machine without it. It computes in bf16. */
#define SQUIRE_BACKEND_BEST 2 /* backend: the first NVIDIA GPU if this build and machine can use it, else the processor; the log says why. */
#define SQUIRE_KERNELS_BEST 0 /* kernels: the fastest set of this machine. All sets give the same results to the bit. */
#define SQUIRE_KERNELS_SCALAR 1 /* kernels: plain code, runs everywhere. */
#define SQUIRE_KERNELS_AVX2 2 /* kernels: AVX2, FMA and F16C. */
#define SQUIRE_KERNELS_AVX512 3 /* kernels: AVX-512 F, BW, DQ and VL. */
#define SQUIRE_KERNELS_AVX512_BF16 4 /* kernels: the same and AVX512-BF16. */
#define SQUIRE_COMPUTE_F32 0 /* compute: activations are not rounded. */
#define SQUIRE_COMPUTE_BF16 1 /* compute: activations are rounded to bf16 between operations. */
#define SQUIRE_DRIVE_THREAD 0 /* drive: a thread of the engine's own works whenever there is work. */
#define SQUIRE_DRIVE_CALLER 1 /* drive: nothing runs but inside calls: squire_engine_step, and calls that wait, which step meanwhile. */

/* A device, the models on it and the thread that steps them. Shared: see squire_engine_retain. */
typedef struct squire_engine squire_engine;

/* How to make an engine. Set up by squire_engine_options_init. */
typedef struct {
  /* Set by _init. */
  uint32_t struct_size;
  /* Set by _init. */
  uint32_t abi;
  /* One of SQUIRE_BACKEND_...; cpu. */
  int32_t backend;
  /* One of SQUIRE_KERNELS_...; best. */
  int32_t kernels;
  /* One of SQUIRE_COMPUTE_...; bf16. */
  int32_t compute;
  /* One of SQUIRE_DRIVE_...; thread. */
  int32_t drive;
  /* Threads that compute, the engine's own included; 0, the default: one a core. */
  int32_t threads;
  /* Sessions that may exist; 1024. An episode takes one, and one more if a teacher follows it. */
  int32_t max_sessions;
  /* Tokens of one forward pass; 512. A prompt is computed in chunks of at most this size. */
  int32_t max_batch_tokens;
  /* The most detailed level that log is to hear; 2, info. */
  int32_t log_level;
  /* Bytes that the models' weights and the updates of their distillers may take together; 0, the default: no limit. Looked
   * at when a model is loaded, a distiller is made, and before an update is built. What a distiller holds counts until it
   * is released: masters, moments, gradients and activations (its settings may bound them further by training_budget). It
   * counts no KV cache and no activations of serving. */
  uint64_t host_budget;
  /* Bytes that each model's KV cache may take; 4 GiB. Where sessions together need more, the work that came first has
   * them: sessions at rest give up theirs and compute again when they are used, younger work waits. On the processor
   * results do not change. */
  uint64_t kv_budget;
  /* Takes the log lines; NULL, the default: nobody. */
  squire_log_fn log;
  /* Handed to log. It must stay valid until the engine and all that was made from it are gone. */
  void *log_user;
  /* Which GPU, counted from 0, the default; for backend cuda only. */
  int32_t device_index;
  /* Must be 0. */
  uint32_t reserved;
  /* Bytes of device memory that the engine may take in all; 0, the default: whatever is free. No matter on the
   * processor. */
  uint64_t device_budget;
  /* Milliseconds that a prompt may keep sessions that decode waiting in one forward pass, as measured; 10. Longer gets a
   * prompt done sooner, shorter makes tokens come more evenly. Where a pass without a prompt takes longer than that, the
   * prompt may as much as double it. 0: as long as max_batch_tokens take. For the processor. */
  int32_t prefill_slice_ms;
  /* Milliseconds that an update that is being built or applied may keep sessions waiting at a time; 20. It then gives way
   * for one round of forward passes and goes on. Longer gets an update done sooner while sessions are served, shorter makes their
   * tokens come more evenly; without sessions at work nothing waits. 0: the default. -1: until the update is done. For the
   * processor. */
  int32_t learning_slice_ms;
  /* Bytes of kv_budget that each model's pages may take that no session holds; 1 GiB. They are kept for sessions that come with
   * the same ids under the same weights, and those that were asked for the longest ago go first. Sessions that exist share
   * what they have in common in any case. */
  uint64_t prefix_budget;
} squire_engine_options;

/* Sets up the options: squire_engine_options_init(&o, sizeof o, SQUIRE_ABI). NULL, and a size that no struct has, does
 * nothing. Any thread, also inside a callback. */
void squire_engine_options_init(squire_engine_options *options, size_t size, uint32_t abi);

/* Makes an engine and starts its threads. The log callback, if there is one, is called from any thread from now on
 * until the engine and all that was made from it are gone. SQUIRE_E_ABI for another major or a wrong struct_size,
 * SQUIRE_E_UNSUPPORTED for a backend or kernel set that this build or machine lacks, SQUIRE_E_ARGUMENT for values out
 * of range and a device that is not there, SQUIRE_E_HOST_MEMORY if threads cannot be started, SQUIRE_E_DEVICE,
 * SQUIRE_E_DEVICE_LOST and SQUIRE_E_DEVICE_MEMORY if the GPU fails or is full. Any thread. */
squire_status squire_engine_create(const squire_engine_options *options, squire_engine **out, squire_error **err);

/* Adds a reference and gives the same pointer; NULL for NULL. Any thread, also inside a callback. */
squire_engine *squire_engine_retain(squire_engine *engine);

/* Drops a reference. The engine ends with the last of its references, models, sessions and generations, and waits for
 * its threads then. NULL is allowed. Any thread, also inside a callback. */
void squire_engine_release(squire_engine *engine);

/* Runs one round of an engine that the caller drives: one batched forward pass over all sessions with work. Answers
 * SQUIRE_OK if it ran one and SQUIRE_END if there was nothing to do. SQUIRE_E_STATE on an engine with a thread of its
 * own; SQUIRE_E_PANIC if the round failed by a defect, and SQUIRE_E_POISONED ever after. Any thread; rounds do not
 * overlap. */
squire_status squire_engine_step(squire_engine *engine, squire_error **err);

/* The same for about budget_us microseconds, for hosts that owe their time to somebody else, such as a frame: runs rounds until
 * the budget is used up, nothing is left, or all that is left waits for KV pages. At least one, so that nobody starves, and
 * another only where it ends within the budget by how long rounds took before; a prompt gets as many rows a round as fit, on the
 * processor. SQUIRE_OK where work is left and SQUIRE_END where none is. What is computed is the same to the bit on the
 * processor. Errors as squire_engine_step. Any thread. Since 0.11. */
squire_status squire_engine_step_for(squire_engine *engine,
                                     uint64_t budget_us,
                                     squire_error **err);

/* The engine's counters as a JSON object, whole numbers but for the last three: sessions (that exist), rounds, rows
 * (tokens that went through a forward pass), sampled (tokens), prefix_hits and prefix_rows (times that work found pages
 * that others had computed, and rows of them), evicted (sessions at rest whose KV pages others needed), preempted (work
 * whose KV pages older work needed), prefix_breaks (times that tokens which stood in a session were taken out or
 * replaced: thoughts by the history, or by squire_session_sync), weight_bytes (read by forward passes),
 * round_weight_bytes (of those, by the rounds), weight_bytes_per_round; kv_in_use_bytes, kv_idle_bytes and kv_budget_bytes
 * (KV pages of all models); tokens_per_second (the last ten seconds); time_to_first_token_seconds and inter_token_seconds,
 * objects of count, sum, p50, p90 and p99, where a percentile is at most 6.25 % too large and null where nothing was
 * measured. docs/metrics.md says how each is computed. Keys may be added. It waits for no work. Any thread. */
squire_status squire_engine_metrics(const squire_engine *engine,
                                    squire_text **out,
                                    squire_error **err);

/* The same in the text format that Prometheus reads (version 0.0.4): a counter is squire_NAME_total, everything else
 * squire_NAME; times are histograms in seconds. To be answered with the content type "text/plain; version=0.0.4". It waits
 * for no work. Any thread. */
squire_status squire_engine_metrics_text(const squire_engine *engine,
                                         squire_text **out,
                                         squire_error **err);

/* What this machine offers to this build, as a JSON object: backends, a list of objects with name. The cpu's has
 * kernel_sets (slowest first), best_kernel_set and cores. That of cuda, in a build with it, has devices, a list in the
 * order of device_index, each with name, compute_capability ("9.0"), memory_bytes and driver ("13.0"), or unavailable
 * with the reason. Makes no engine and touches no device. Keys may be added. Any thread. */
squire_status squire_device_probe(squire_text **out, squire_error **err);

/* ---- model, tokens and text ------------------------------------------------------------------------------ */

/* Of squire_model_options: copy the weights. Without it they are mapped, and the files must not be truncated while the
 * model lives. */
#define SQUIRE_MODEL_COPY 1

/* Of squire_tokenize: added tokens such as <|im_end|> in the text become control. Never for text that comes from
 * outside; without it they are plain text. */
#define SQUIRE_TOKENIZE_CONTROL 1
#define SQUIRE_DETOKENIZE_SKIP_SPECIAL 1 /* Of squire_detokenize: special tokens give no text. */

/* A lineage of weight revisions with one tokenizer and one chat template. Shared: see squire_model_retain. */
typedef struct squire_model squire_model;

/* How to load a model. Set up by squire_model_options_init. */
typedef struct {
  /* Set by _init. */
  uint32_t struct_size;
  /* SQUIRE_MODEL_COPY or 0. */
  uint32_t flags;
  /* Tokens that a session may hold; 0, the default: the model's own limit. */
  uint64_t max_context;
  /* The folder, in the form of Hugging Face: config.json, safetensors, and if there is one tokenizer.json. */
  const char *path;
  /* Bytes of path. */
  size_t path_len;
  /* Hears of the loading (phase "weights", in bytes) on the calling thread; may be NULL. */
  squire_progress_fn progress;
  /* Handed to progress. */
  void *progress_user;
} squire_model_options;

/* Sets up the options: squire_model_options_init(&o, sizeof o). NULL, and a size that no struct has, does nothing. Any
 * thread, also inside a callback. */
void squire_model_options_init(squire_model_options *options, size_t size);

/* What a model folder would need, as a JSON object, before anything is allocated: parameters, and in bytes
 * weight_bytes, kv_bytes_per_token, kv_bytes_per_full_session, activation_bytes, logit_bytes, training_bytes; of the
 * tensors that the model uses. warnings: what is not as it should be in the folder and was understood all the same.
 * Reads the folder's documents and the headers of its weights, and compares an output projection with the embedding
 * where config.json says that they are one. Keys may be added. Errors as squire_model_load. Any thread. */
squire_status squire_model_plan(const squire_engine *engine,
                                const squire_model_options *options,
                                squire_text **out,
                                squire_error **err);

/* Loads a model folder. What is not as it should be in it and was understood all the same is logged as a warning and
 * stands in squire_model_info. Blocks; stops with SQUIRE_CANCELLED between tensors when cancel (may be NULL) is set or
 * progress asks for it. SQUIRE_E_IO for files that cannot be read, SQUIRE_E_FORMAT and SQUIRE_E_MISMATCH for files
 * that are broken or contradict each other, SQUIRE_E_UNSUPPORTED for models that squire does not serve,
 * SQUIRE_E_BUDGET beyond host_budget. The model keeps the engine alive. Any thread. */
squire_status squire_model_load(squire_engine *engine,
                                const squire_model_options *options,
                                const squire_cancel *cancel,
                                squire_model **out,
                                squire_error **err);

/* Adds a reference and gives the same pointer; NULL for NULL. Any thread, also inside a callback. */
squire_model *squire_model_retain(squire_model *model);

/* Drops a reference. The weights go with the last reference, session and distiller that use them. NULL is allowed. Any
 * thread, also inside a callback. */
void squire_model_release(squire_model *model);

/* The revision of the weights that new sessions get, in *revision: 1 as loaded, one more with every publish. Never
 * waits for device work. Any thread. */
squire_status squire_model_revision(const squire_model *model, uint64_t *revision, squire_error **err);

/* What the model is, as a JSON object: config, parameters, weight_bytes, weight_dtype, compute, max_context,
 * kv_bytes_per_token, kv_pages_in_use, kv_pages_idle, revision, revisions_alive, adapter (of the current revision: rank, alpha, rslora,
 * targets, parameters, bytes; or null), adapters (the same of each that has a name, with its revision), tokenizer and chat_template (whether there is one),
 * chat_templates (their names), history (as squire_model_set_history names it), stop_ids,
 * stop_ids_from (a list of {"id", "token": its text, "from": the documents that name it}),
 * generation_defaults (temperature, top_k, top_p and every other control: how squire_gen_start samples where it is not told), warnings (of
 * loading). Keys may be added. Any thread. */
squire_status squire_model_info(const squire_model *model,
                                squire_text **out,
                                squire_error **err);

/* How large the model is: *vocabulary (ids from 0 that it takes and says), *max_context (tokens that a session may hold)
 * and *tokenizer_ids (ids that its tokenizer gives meaning to, from 0; 0 without a tokenizer). Each out-parameter may be
 * NULL if not wanted. Never waits. Any thread. */
squire_status squire_model_sizes(const squire_model *model,
                                 uint64_t *vocabulary,
                                 uint64_t *max_context,
                                 uint64_t *tokenizer_ids,
                                 squire_error **err);

/* The ids that end a generation, unless SQUIRE_GEN_IGNORE_MODEL_STOPS is set. Never waits. Any thread. */
squire_status squire_model_stop_ids(const squire_model *model, squire_tokens **out, squire_error **err);

/* Says what of the thoughts of earlier turns stays in conversations, where a request does not: "keep", the default,
 * all of them; "strip_thinking", none behind which a message comes; "tool_cycle", those since the last message of a
 * user. squire_model_save writes it into tokenizer_config.json (squire_history), and squire_model_load reads it there;
 * squire_model_info tells it. Counts from the next request on. SQUIRE_E_ARGUMENT (detail BAD_VALUE) for another name.
 * Any thread. */
squire_status squire_model_set_history(squire_model *model,
                                       const char *history,
                                       size_t history_len,
                                       squire_error **err);

/* Writes the current revision as a Hugging Face folder that loads again, with the tokenizer and template that the model
 * came with. Where it has an adapter that is merged, as squire_adapter_merge does, which takes the memory of the base once
 * more (SQUIRE_E_BUDGET beyond host_budget); squire_adapter_save writes the adapter alone. It is written aside and moved into place, which holds the old folder or the new one at every moment; one that
 * is there already is replaced if it is empty or holds what squire_model_save writes and nothing else: config.json,
 * model.safetensors, the documents of tokenizer and template, no links, no other folders. Else SQUIRE_E_IO, as for what cannot be written. What a save
 * that was killed has left beside the place goes with the next one. Blocks. Any thread. */
squire_status squire_model_save(const squire_model *model,
                                const char *path,
                                size_t path_len,
                                squire_error **err);

/* The ids of a text, of any length: besides them it takes up to 24 bytes of memory for each byte of the longest piece that
 * the tokenizer does not cut, such as a word. flags: SQUIRE_TOKENIZE_CONTROL or 0. SQUIRE_E_IO (detail MISSING_FILE) if the
 * model has no tokenizer, SQUIRE_E_HOST_MEMORY. Any thread. */
squire_status squire_tokenize(const squire_model *model,
                              const char *text,
                              size_t text_len,
                              uint32_t flags,
                              squire_tokens **out,
                              squire_error **err);

/* squire_tokenize that cancel (may be NULL) stops from another thread: SQUIRE_CANCELLED, within milliseconds while tokens are
 * made; a tokenizer's normal form and added tokens are seen to as a whole first, a second or so for 50 MB. For text that may
 * be large: one word of 50 MB takes most of a minute. */
squire_status squire_tokenize_until(const squire_model *model,
                                    const char *text,
                                    size_t text_len,
                                    uint32_t flags,
                                    const squire_cancel *cancel,
                                    squire_tokens **out,
                                    squire_error **err);

/* The text of ids; bytes that are not UTF-8 become U+FFFD. flags: SQUIRE_DETOKENIZE_SKIP_SPECIAL or 0.
 * SQUIRE_E_ARGUMENT for ids outside the vocabulary, SQUIRE_E_IO (detail MISSING_FILE) if the model has no tokenizer.
 * Any thread. */
squire_status squire_detokenize(const squire_model *model,
                                const int32_t *ids,
                                size_t ids_len,
                                uint32_t flags,
                                squire_text **out,
                                squire_error **err);

/* ---- session --------------------------------------------------------------------------------------------- */

/* One timeline of token ids and its KV cache. Shared: see squire_session_retain. */
typedef struct squire_session squire_session;

/* Makes an empty session on the model's current revision, which it keeps until squire_session_rebase. SQUIRE_E_BUDGET
 * if max_sessions exist. Any thread. */
squire_status squire_session_create(squire_model *model, squire_session **out, squire_error **err);

/* Adds a reference and gives the same pointer; NULL for NULL. Any thread, also inside a callback. */
squire_session *squire_session_retain(squire_session *session);

/* Drops a reference. A generation under way goes on; the timeline is freed when it has ended. NULL is allowed. Any
 * thread, also inside a callback. */
void squire_session_release(squire_session *session);

/* Makes the timeline equal to ids: keeps the longest common beginning, drops the rest, appends the remainder. *reused,
 * unless reused is NULL, gets the number of tokens that need no computing again. Computes nothing yet.
 * SQUIRE_E_ARGUMENT for ids outside the vocabulary, SQUIRE_E_CONTEXT_FULL for more than the context holds,
 * SQUIRE_E_BUSY while a generation runs. A call that fails leaves the timeline as it was. Any thread. */
squire_status squire_session_sync(squire_session *session,
                                  const int32_t *ids,
                                  size_t ids_len,
                                  uint64_t *reused,
                                  squire_error **err);

/* Appends ids as the host's. Computes nothing yet. Errors as squire_session_sync. Any thread. */
squire_status squire_session_append(squire_session *session, const int32_t *ids, size_t ids_len, squire_error **err);

/* Keeps the first keep tokens and drops the rest. SQUIRE_E_ARGUMENT for more than there are, SQUIRE_E_BUSY while a
 * generation runs. Any thread. */
squire_status squire_session_truncate(squire_session *session, uint64_t keep, squire_error **err);

/* Makes a session with the same timeline on the same revision; what was computed is shared until one of them writes.
 * SQUIRE_E_BUSY while a generation runs, SQUIRE_E_BUDGET if max_sessions exist. Any thread. */
squire_status squire_session_fork(const squire_session *session, squire_session **out, squire_error **err);

/* Moves the session to the model's current revision, or one that is on a named adapter to the newest of that name; its
 * number goes to *revision unless revision is NULL. The ids stay; what was computed is computed again when it is needed.
 * SQUIRE_E_BUSY while a generation runs; of a named adapter also the errors of squire_session_create_on, after which the
 * session is where it was. Any thread. */
squire_status squire_session_rebase(squire_session *session, uint64_t *revision, squire_error **err);

/* How far the timeline reaches, in tokens: *length, *room (how many still fit into the context) and *pending (of length,
 * those that are not computed yet). Each out-parameter may be NULL if not wanted. SQUIRE_E_BUSY while a generation runs.
 * Any thread. */
squire_status squire_session_length(const squire_session *session,
                                    uint64_t *length,
                                    uint64_t *room,
                                    uint64_t *pending,
                                    squire_error **err);

/* Computes what is pending, so that forks made afterwards share it: a system prompt that many sessions begin with is
 * computed once. Blocks. progress (may be NULL) hears of the tokens (phase "prefill") on the calling thread; it and
 * cancel (may be NULL) stop it with SQUIRE_CANCELLED between two chunks, and what is computed by then stays. Nothing
 * pending is no failure. SQUIRE_E_BUSY while a generation runs, SQUIRE_E_BUDGET if the KV budget runs out; the ids stay.
 * Any thread. */
squire_status squire_session_prefill(squire_session *session,
                                     const squire_cancel *cancel,
                                     squire_progress_fn progress,
                                     void *progress_user,
                                     squire_error **err);

/* The ids of the timeline, exactly as given and sampled. SQUIRE_E_BUSY while a generation runs. Any thread. */
squire_status squire_session_tokens(const squire_session *session, squire_tokens **out, squire_error **err);

/* Everything known of the timeline's tokens, as a JSON object: revision (that the session is bound to), and arrays with
 * an entry a token: ids, sources ("host", "glue", "student", "teacher", "replay"), logprobs (nats, temperature 1),
 * sampled_logprobs (of the distribution sampled from), revisions (of the weights that sampled it). The last three are
 * null where nothing was sampled. Keys may be added. SQUIRE_E_BUSY while a generation runs. Any thread. */
squire_status squire_session_trace(const squire_session *session, squire_text **out, squire_error **err);

/* ---- adapter --------------------------------------------------------------------------------------------- */

/* Loads an adapter over the model's current base weights, under a name of 1 to 256 bytes: a folder in the form of PEFT
 * (adapter_config.json, adapter_model.safetensors), of LoRA on the projections q_proj, k_proj, v_proj, o_proj, gate_proj,
 * up_proj, down_proj. Many may be loaded at once, and rows of all of them run in one pass over the base. A name that is
 * there already stands for the new one from then on; sessions on the old one keep it. *revision, unless revision is NULL,
 * gets the number of its revision, which events and traces name: from 1000000001 on, while what is published counts from 1.
 * A name has no control characters. What the adapter's dropout was in training has no meaning
 * here. SQUIRE_E_IO for files that cannot be read, SQUIRE_E_FORMAT (ADAPTER_FORM) for a configuration that is broken,
 * SQUIRE_E_UNSUPPORTED for what squire does not compute (UNSUPPORTED_ADAPTER) and for a model on a GPU
 * (UNSUPPORTED_BACKEND), SQUIRE_E_MISMATCH (ADAPTER_MISMATCH, TENSOR_MISSING, TENSOR_EXTRA, TENSOR_SHAPE) for an adapter of
 * another model, rank or target or, where squire wrote it, of other base weights, SQUIRE_E_FORMAT (TENSOR_NAMES) for two names
 * of one tensor, SQUIRE_E_DIVERGED (NOT_FINITE) for numbers that are none, SQUIRE_E_BUDGET beyond host_budget. A call that
 * fails changes nothing. Any thread. */
squire_status squire_adapter_load(squire_model *model,
                                  const char *name,
                                  size_t name_len,
                                  const char *path,
                                  size_t path_len,
                                  uint64_t *revision,
                                  squire_error **err);

/* Forgets the adapter of that name; sessions on it keep it, and its memory goes with the last of them. SQUIRE_E_ARGUMENT
 * (UNKNOWN_ADAPTER) where there is none. squire_model_info lists those that are loaded. Any thread. */
squire_status squire_adapter_unload(squire_model *model, const char *name, size_t name_len, squire_error **err);

/* Writes an adapter as a folder that PEFT and squire_adapter_load read: the one of that name, or for a NULL name that of
 * the model's current revision, which a distiller trained. The folder appears whole or not at all; one that is there
 * already is replaced if it is empty or holds an adapter and nothing else, else SQUIRE_E_IO. SQUIRE_E_ARGUMENT
 * (UNKNOWN_ADAPTER) where there is no such adapter. Blocks. Any thread. */
squire_status squire_adapter_save(const squire_model *model,
                                  const char *name,
                                  size_t name_len,
                                  const char *path,
                                  size_t path_len,
                                  squire_error **err);

/* Folds an adapter into the base weights, W + s B A rounded to the dtype of W, and makes the result the revision that new
 * sessions get, whose number goes to *revision unless revision is NULL: the adapter of that name, or for a NULL name that
 * of the current revision. The merged model is a model of its own, near the adapted one and not bit for bit the same.
 * Adapters that were loaded belong to the base before: new sessions cannot use them (ADAPTER_MISMATCH) until they are
 * loaded again, sessions on them keep them. SQUIRE_E_ARGUMENT (UNKNOWN_ADAPTER), SQUIRE_E_BUDGET beyond host_budget,
 * SQUIRE_E_DIVERGED (NOT_FINITE) where the sum is beyond the base's dtype, and SQUIRE_E_MISMATCH (ADAPTER_MISMATCH), with
 * nothing changed, where somebody published while it was computed. Blocks. Any thread. */
squire_status squire_adapter_merge(squire_model *model,
                                   const char *name,
                                   size_t name_len,
                                   uint64_t *revision,
                                   squire_error **err);

/* Makes an empty session on the newest generation of the adapter of that name, which it keeps until squire_session_rebase
 * (to the newest of the same name) or squire_session_use_adapter. SQUIRE_E_ARGUMENT (UNKNOWN_ADAPTER) where none of that
 * name is loaded, SQUIRE_E_MISMATCH (ADAPTER_MISMATCH) where other base weights were published since, SQUIRE_E_BUDGET if
 * max_sessions exist. Any thread. */
squire_status squire_session_create_on(squire_model *model,
                                       const char *adapter,
                                       size_t adapter_len,
                                       squire_session **out,
                                       squire_error **err);

/* Moves the session to the newest generation of an adapter, or for a NULL adapter to the model's current revision; the
 * number of where it is then goes to *revision unless revision is NULL. The ids stay; what was computed under other
 * weights is computed again when it is needed. Errors as squire_session_create_on, after which the session is where it was;
 * SQUIRE_E_BUSY while a generation runs. Any thread. */
squire_status squire_session_use_adapter(squire_session *session,
                                         const char *adapter,
                                         size_t adapter_len,
                                         uint64_t *revision,
                                         squire_error **err);

/* ---- chat ------------------------------------------------------------------------------------------------ */

#define SQUIRE_MESSAGE_GENERATION_PROMPT 1 /* Of squire_chat_append_message: the beginning of an assistant turn follows the message. */

/* The ids of a whole conversation by the model's chat template. request_json has the keys of transformers'
 * apply_chat_template: {"messages": [{"role", "content", ...}], "tools": [...], "documents": [...],
 * "add_generation_prompt": true or false, the default; "continue_final_message": likewise, true leaves the last
 * message open, so that what is generated goes on with it; "chat_template": the name of one of the folder's templates,
 * without it tool_use where tools are given and there is one, else default; "chat_template_kwargs":
 * {"enable_thinking": false and other variables of the template}, "history": what of earlier turns' thoughts stays,
 * "keep", "strip_thinking" or "tool_cycle", without it the model's (see squire_model_set_history)}. A variable that
 * the template reads is taken at the top level too; other keys are refused. Numbers keep every digit.
* 
 * What messages, tools and variables say never becomes control: a forged <|im_end|> stays text. In messages of the role
 * assistant, tokens that are not special, such as `<think>`, keep their ids. Tool results must have the role tool: a
 * `<tool_response>` that a user message spells out is text, and the template does not see it as its own (the engine's log
 * says so).
* 
 * SQUIRE_E_ARGUMENT for a wrong request, with its place, or a role that the template has no place for;
 * SQUIRE_E_TEMPLATE if the model has no template, or it fails or does more than a rendering may (steps and bytes are
 * counted; a request may take 30 seconds at most); SQUIRE_E_IO (detail MISSING_FILE) without a tokenizer;
 * SQUIRE_E_HOST_MEMORY, also where no thread with 4 MiB of stack and 128 MiB of address space can be had for the template.
 * Any thread, of any stack. */
squire_status squire_chat_render(const squire_model *model,
                                 const char *request_json,
                                 size_t request_len,
                                 squire_tokens **out,
                                 squire_error **err);

/* squire_chat_render that cancel (may be NULL) stops from another thread: SQUIRE_CANCELLED, within milliseconds while the
 * template runs and tokens are made. A request is read, and its text brought into its normal form, as a whole: a second or
 * a few for 50 MB. For requests that may be large and templates that are not known. */
squire_status squire_chat_render_until(const squire_model *model,
                                       const char *request_json,
                                       size_t request_len,
                                       const squire_cancel *cancel,
                                       squire_tokens **out,
                                       squire_error **err);

/* Appends messages to a session's timeline, and closes the turn that stands open there; what was sampled before stays
 * as it was sampled, but for thoughts that another history than keep cuts out: what stands behind them is computed
 * again, and squire_engine_metrics counts it in prefix_breaks. The request is that of squire_chat_render with the new
 * messages only; with no messages and add_generation_prompt, the beginning of an assistant turn alone. *added, unless
 * added is NULL, gets the number of tokens. Computes nothing yet. Errors as squire_chat_render; SQUIRE_E_BUSY while a
 * generation runs, SQUIRE_E_CONTEXT_FULL if there is no room, before a text far too long is made into tokens.
 * Templates print tools and documents at a conversation's head, so they belong into the first call: given later they
 * are seen by the template and mostly leave no text. A call that fails leaves the timeline as it was. Any thread. */
squire_status squire_chat_append(squire_session *session,
                                 const char *request_json,
                                 size_t request_len,
                                 uint64_t *added,
                                 squire_error **err);

/* squire_chat_append that cancel (may be NULL) stops from another thread as squire_chat_render_until is stopped:
 * SQUIRE_CANCELLED, and the timeline is as it was. */
squire_status squire_chat_append_until(squire_session *session,
                                       const char *request_json,
                                       size_t request_len,
                                       const squire_cancel *cancel,
                                       uint64_t *added,
                                       squire_error **err);

/* squire_chat_append of one message that has a role and a text, for hosts without JSON at hand: the role and the content by
 * pointer and length, of which the content may be empty. flags: SQUIRE_MESSAGE_GENERATION_PROMPT or 0. cancel and added may
 * be NULL. The content never becomes control, and the history is the model's (see squire_model_set_history). Errors as
 * squire_chat_append_until; SQUIRE_E_ARGUMENT for unknown flags, text that is not UTF-8 and a role that the template has no
 * place for. A call that fails leaves the timeline as it was. Any thread. */
squire_status squire_chat_append_message(squire_session *session,
                                         const char *role,
                                         size_t role_len,
                                         const char *content,
                                         size_t content_len,
                                         uint32_t flags,
                                         const squire_cancel *cancel,
                                         uint64_t *added,
                                         squire_error **err);

/* ---- generation ------------------------------------------------------------------------------------------ */

#define SQUIRE_GEN_IGNORE_MODEL_STOPS 1 /* Of squire_gen_options: the model's own stop ids do not end the generation. */

/* Of squire_gen_options: what is said is told apart too, so that behind the events of tokens, which stay as they are, come
 * those of thought, answer and tool calls. Not beside stop strings, which may end amid any of them. */
#define SQUIRE_GEN_PARTS 2

/* Of temperature, top_k, top_p, min_p, typical_p, repetition_penalty and no_repeat_ngram_size: as the model's makers advise,
 * and where they do not, what changes nothing (1, 0, 1, 0, 1, 1 and 0). */
#define SQUIRE_GEN_UNSET -1
#define SQUIRE_GEN_UNSET_PENALTY (-1000) /* The same of presence_penalty and frequency_penalty, of which -1 is a value: as the makers advise, else 0. */
#define SQUIRE_GEN_RANDOM_SEED 18446744073709551615ull /* Of seed: drawn for this generation, so that no two runs say the same. squire_gen_seed tells which it was. */

/* What is added to the logit of an id. */
typedef struct {
  /* The id. */
  int32_t id;
  /* From -100 to 100. */
  float bias;
} squire_logit_bias;

/* A text that ends a generation. */
typedef struct {
  /* UTF-8. */
  const char *text;
  /* Its bytes, 1 to 4096. */
  size_t len;
} squire_stop_string;

/* How to generate. Set up by squire_gen_options_init, which leaves the sampling to the model; squire_gen_options_for
 * shows what that is. Each field that is set counts for itself. */
typedef struct {
  /* Set by _init. */
  uint32_t struct_size;
  /* SQUIRE_GEN_IGNORE_MODEL_STOPS and SQUIRE_GEN_PARTS, or 0, the default. */
  uint32_t flags;
  /* Most tokens to sample; 0, the default: as many as the context holds. */
  int32_t max_tokens;
  /* Only the k likeliest tokens are sampled from; 0: all. SQUIRE_GEN_UNSET, the default: the model's. */
  int32_t top_k;
  /* 0 takes the likeliest token; 10000 is the most. SQUIRE_GEN_UNSET, the default: the model's. */
  float temperature;
  /* Only the likeliest tokens that make up this share are sampled from; above 0, at most 1. SQUIRE_GEN_UNSET, the
   * default: the model's. */
  float top_p;
  /* Draws are keyed by (seed, position): they depend neither on what else runs nor on what was rewound.
   * SQUIRE_GEN_RANDOM_SEED, the default: another one each time. */
  uint64_t seed;
  /* Ids that end the generation besides the model's own. The id that ends it is part of the timeline. */
  const int32_t *stop_ids;
  /* Number of stop_ids. */
  size_t stop_ids_len;
  /* Name of the adapter that the session is moved to first, as squire_session_use_adapter does; NULL, the default: it
   * stays on what it is on. */
  const char *adapter;
  /* Bytes of adapter. */
  size_t adapter_len;
  /* After top_p: only ids with at least this share of the likeliest one's probability are sampled from; from 0, which keeps
   * all, to 1. SQUIRE_GEN_UNSET, the default: the model's. docs/numerics.md has the order of all controls. */
  float min_p;
  /* After min_p: only ids whose -ln p lies nearest to the entropy are sampled from, up to this mass; above 0, at most 1, which
   * keeps all. SQUIRE_GEN_UNSET, the default: the model's. */
  float typical_p;
  /* Before all cuts: logits of ids that stand in the timeline, the prompt included, are divided by this where they are
   * positive, else multiplied; from 0.01 to 100. SQUIRE_GEN_UNSET, the default: the model's. */
  float repetition_penalty;
  /* Then taken once from logits of ids that were sampled in the turn under way; from -2 to 2. SQUIRE_GEN_UNSET_PENALTY, the
   * default: the model's. */
  float presence_penalty;
  /* And for each time that they were; from -2 to 2. SQUIRE_GEN_UNSET_PENALTY, the default: the model's. */
  float frequency_penalty;
  /* No so many ids of the timeline side by side come again; at most 64, 0: they may. SQUIRE_GEN_UNSET, the default: the
   * model's. */
  int32_t no_repeat_ngram_size;
  /* Added to logits before anything else, each id once. NULL, the default: the model's. */
  const squire_logit_bias *logit_bias;
  /* Number of logit_bias. */
  size_t logit_bias_len;
  /* Texts that end the generation, at most 128: the text of the events ends before the first that is complete, the ids with the
   * token that completes it, and so does the timeline. Text that may become one is held back until that is certain. NULL, the
   * default: the model's. */
  const squire_stop_string *stop_strings;
  /* Number of stop_strings. */
  size_t stop_strings_len;
  /* How many of the likeliest ids events have beside each token, with their log-probs at temperature 1; at most 128. 0, the
   * default: none. */
  int32_t top_logprobs;
  /* From -100 to 100: a higher one is served first, and gets the KV pages where there are not enough for all; what gave way
   * to it is computed again in its turn. Those of one priority are served alike. 0, the default. */
  int32_t priority;
  /* Milliseconds that it may take, from its beginning on, on a clock that nobody sets; 0, the default: as long as it takes. Waits
   * count, for KV pages say, and so does the prompt: it ends with SQUIRE_FINISH_TIME behind the last whole token within, which
   * may be none. On an engine that the caller drives, in the first step after it. Since 0.11, as all that follows. */
  uint64_t time_limit_ms;
  /* A flag that cancels it, and whatever else was given it, as squire_gen_cancel does: set before the start, it ends without a
   * token. It keeps the flag, which the host may release. On an engine that the caller drives, in the first step after it was
   * set. NULL, the default: none. */
  const squire_cancel *cancel;
} squire_gen_options;

/* Sets up the options: squire_gen_options_init(&o, sizeof o). NULL, and a size that no struct has, does nothing. Any
 * thread, also inside a callback. */
void squire_gen_options_init(squire_gen_options *options, size_t size);

/* Shows how the model generates where nobody says otherwise: options, set up by its _init, gets temperature, top_k, top_p,
 * min_p, typical_p, no_repeat_ngram_size and the three penalties as the folder's generation_config.json advises and what changes
 * nothing where it does not, and every other field its default; the folder's biases and stop strings stand in
 * squire_model_info. Any thread. */
squire_status squire_gen_options_for(const squire_model *model,
                                     squire_gen_options *options,
                                     squire_error **err);

#define SQUIRE_EVENT_TOKENS 1 /* kind of an event: tokens were sampled. */
#define SQUIRE_EVENT_END 2 /* kind of an event: nothing more will come; finish says why. */
#define SQUIRE_EVENT_REASONING 3 /* kind of an event of SQUIRE_GEN_PARTS: text has more of a thought. */
#define SQUIRE_EVENT_CONTENT 4 /* kind of an event of SQUIRE_GEN_PARTS: text has more of the answer. */
#define SQUIRE_EVENT_TOOL_CALL 5 /* kind of an event of SQUIRE_GEN_PARTS: a whole tool call, in call_id, name and arguments. */

/* kind of an event of SQUIRE_GEN_PARTS: text, marks included, cannot be read as it was begun, a broken tool call or a mark out
 * of place; reason says why. Empty where the output ended within a thought, which was told as it came. */
#define SQUIRE_EVENT_UNPARSED 6
#define SQUIRE_FINISH_STOP 1 /* finish: a stop id was sampled, or a stop string was completed. */
#define SQUIRE_FINISH_LENGTH 2 /* finish: max_tokens were sampled. */
#define SQUIRE_FINISH_CONTEXT_FULL 3 /* finish: the context has no room for another token. */
#define SQUIRE_FINISH_CANCELLED 4 /* finish: it was cancelled; the timeline stands at the last whole token. */
#define SQUIRE_FINISH_FAILED 5 /* finish: it failed, as the call before said; the timeline stands at the last whole token. */
#define SQUIRE_FINISH_TIME 6 /* finish: the time limit of its options was over; the timeline stands at the last whole token within it. Since 0.11. */

/* What squire_gen_next gives. Set up by squire_event_init. The pointers live until the generation's next
 * squire_gen_next, or its release. */
typedef struct {
  /* Set by _init. */
  uint32_t struct_size;
  /* One of SQUIRE_EVENT_... */
  int32_t kind;
  /* One of SQUIRE_FINISH_... at the end, else 0. */
  int32_t finish;
  /* Who wrote the tokens: 1 the student, 2 the teacher, as SQUIRE_ACTOR_... has them. */
  int32_t actor;
  /* Whole UTF-8 text of the tokens, ended by NUL, without special tokens; the bytes of a broken-off character come
   * with a later event. Empty for a model without a tokenizer. Of a part its text: all that was said stands in the events of
   * tokens, so take the texts of one or of the other. */
  const char *text;
  /* Bytes of text. */
  size_t text_len;
  /* The exact sampled ids. */
  const int32_t *ids;
  /* Their log-probs at temperature 1 over the whole vocabulary, in nats; ids_len of them. NaN where the host's teacher told none. */
  const float *logprobs;
  /* Their log-probs in the distribution sampled from; ids_len of them. NaN of a turn of the host's teacher. */
  const float *sampled_logprobs;
  /* Number of ids. */
  size_t ids_len;
  /* Position of the first id in the timeline. */
  uint64_t position;
  /* Revision of the weights that sampled them. */
  uint64_t revision;
  /* The likeliest ids beside each token, likeliest first: ids_len times top_k of them, -1 where there are no more. */
  const int32_t *top_ids;
  /* Their log-probs at temperature 1, in nats; -INFINITY where there are no more. */
  const float *top_logprobs;
  /* Entries beside each token: top_logprobs of the options; 0 in a turn of the host's teacher. */
  size_t top_k;
  /* Which of the stop strings the last of these ids completed; at the end, which ended the generation. -1: none. */
  int32_t stop_string;
  /* Nothing; 0. */
  int32_t reserved;
  /* Where a stop string ended it: the byte of the generation's text at which that begins, which is as many as all events had. */
  uint64_t stop_byte;
  /* And which of the generation's ids, counted from 0, holds its first byte. */
  uint64_t stop_token;
  /* Of a tool call: the tool, ended by NUL. It need not be one that the model was told of. NULL in other events, as
   * are the next. */
  const char *name;
  /* Bytes of name. */
  size_t name_len;
  /* Of a tool call: a JSON object, ended by NUL. Checked as JSON, not against the tool's schema. */
  const char *arguments;
  /* Bytes of arguments. */
  size_t arguments_len;
  /* Of a tool call: a name for it that no other call of the timeline has, ended by NUL. */
  const char *call_id;
  /* Bytes of call_id. */
  size_t call_id_len;
  /* Of a tool call: which of its turn, from 0. */
  uint64_t call_index;
  /* Of what cannot be read: why, ended by NUL. */
  const char *reason;
  /* Bytes of reason. */
  size_t reason_len;
} squire_event;

/* Sets up an event: squire_event_init(&e, sizeof e). NULL, and a size that no struct has, does nothing. Any thread, also
 * inside a callback. */
void squire_event_init(squire_event *event, size_t size);

/* One running generation. Freed by the last squire_gen_release, which cancels it. Shared: see squire_gen_retain. */
typedef struct squire_gen squire_gen;

/* Starts to generate after the session's last token; options may be NULL for the model's own. The session is busy until
 * the generation has ended or is released. SQUIRE_E_STATE (detail EMPTY_SESSION) for an empty session,
 * SQUIRE_E_CONTEXT_FULL without room for a token, SQUIRE_E_BUSY while another generation runs, SQUIRE_E_ARGUMENT for
 * options out of range, SQUIRE_E_IO (detail MISSING_FILE) for SQUIRE_GEN_PARTS without a tokenizer; those of
 * squire_session_use_adapter where an adapter is named. Any thread. */
squire_status squire_gen_start(squire_session *session,
                               const squire_gen_options *options,
                               squire_gen **out,
                               squire_error **err);

/* Starts n generations on n forks of the session, which share its pages: several continuations of one prompt. What is pending
 * is computed first, once, and waited for, as squire_session_prefill does; cancel (may be NULL) stops that, and so does the flag of
 * options. A time limit counts from there on. sessions and gens
 * have room for n pointers each; all are released by the host, in any order. The first draws by the seed of options (may be NULL), each
 * other by one derived from it, which squire_gen_seed tells. The session itself stays idle. On an error, or SQUIRE_CANCELLED,
 * none is started and the pointers are as they were. Errors are those of squire_gen_start and squire_session_prefill;
 * SQUIRE_E_BUDGET (SESSION_BUDGET) where the engine has no room for n more sessions; SQUIRE_E_ARGUMENT where n is 0 or an
 * adapter is named. Any thread. */
squire_status squire_gen_start_n(squire_session *session,
                                 const squire_gen_options *options,
                                 size_t n,
                                 const squire_cancel *cancel,
                                 squire_session **sessions,
                                 squire_gen **gens,
                                 squire_error **err);

/* The seed of the generation's draws, in *seed: given again with the same ids, options and revision, it repeats the run.
 * Never waits. Any thread. */
squire_status squire_gen_seed(const squire_gen *generation, uint64_t *seed, squire_error **err);

/* Waits up to timeout_ms (-1: as long as it takes; 0: not at all) for what was sampled since the last call. SQUIRE_OK
 * with an event of tokens, or with SQUIRE_GEN_PARTS of a part of what was said; SQUIRE_END, again and again, with the
 * event of the end, once all tokens were pulled; SQUIRE_TIMEOUT with the event as it was. On an engine that the caller
 * drives, it steps meanwhile. SQUIRE_E_BUSY while another call waits for this generation; SQUIRE_E_BUDGET if the KV
 * budget ran out; SQUIRE_E_DIVERGED (detail NOT_FINITE) where the next token's logits are NaN or infinite: nothing of
 * that row is kept; SQUIRE_E_TEACHER where the host's teacher was to speak and failed or was silent beyond its
 * deadline; SQUIRE_E_PANIC or SQUIRE_E_POISONED if the engine failed. After an error the generation has ended, and but
 * for the last two the session is idle with what was sampled before. Any thread. */
squire_status squire_gen_next(squire_gen *generation, int32_t timeout_ms, squire_event *event, squire_error **err);

/* Asks the generation to stop at the next token; within a prompt, between two layers of the forward pass if nobody else
 * wants it, else after it. Its end comes with finish
 * SQUIRE_FINISH_CANCELLED, unless it ends by itself before. NULL does nothing. Never blocks. Any thread, also inside a
 * callback. */
void squire_gen_cancel(squire_gen *generation);

/* Adds a reference and gives the same pointer; NULL for NULL. Any thread, also inside a callback. Since 0.11. */
squire_gen *squire_gen_retain(squire_gen *generation);

/* Drops a reference; the last one cancels the generation if it runs and frees it. Waits for nothing: the session's next call waits for the forward pass
 * under way, which is given up between two layers if nobody else wants it, and finds the session idle. A call of
 * squire_gen_next that waits on another thread answers SQUIRE_END with SQUIRE_FINISH_CANCELLED. NULL is allowed. Any
 * thread, also inside a callback. */
void squire_gen_release(squire_gen *generation);

/* ---- queue ----------------------------------------------------------------------------------------------- */

/* Generations of one engine that are waited for together. Freed by squire_queue_release. */
typedef struct squire_queue squire_queue;

/* Makes an empty queue for generations of the engine. Any thread. */
squire_status squire_queue_create(squire_engine *engine, squire_queue **out, squire_error **err);

/* Puts a generation into the queue under a tag of the host's, from its next event on. It stays the host's: it is cancelled and
 * released as ever, is pulled by nobody else meanwhile, and leaves the queue with its end or its release. Several may have one tag. SQUIRE_E_ARGUMENT (detail
 * FOREIGN_HANDLE) for one of another engine, SQUIRE_E_ARGUMENT for one that is in a queue already. Any thread, also while another
 * waits in squire_queue_next. */
squire_status squire_queue_add(squire_queue *queue,
                               squire_gen *generation,
                               uint64_t tag,
                               squire_error **err);

/* Waits up to timeout_ms (-1: as long as it takes, also while the queue is empty; 0: not at all) until one of the queue's
 * generations has something to tell, and gives it with its tag as squire_gen_next does: all tokens since its last event, or its
 * end, after which it is no longer in the queue. Those that have something take turns. SQUIRE_OK with *tag and an event, whose
 * kind tells an end; SQUIRE_TIMEOUT with both as they were. An error is the generation's of *tag, of which the end comes next;
 * where no generation can be blamed *tag is as it was. What the event points to lives until the queue's next
 * squire_queue_next, the generation's next squire_gen_next or its release. SQUIRE_E_BUSY while another call waits for this
 * queue. On an engine that the caller drives, it steps meanwhile. Any thread. */
squire_status squire_queue_next(squire_queue *queue,
                                int32_t timeout_ms,
                                uint64_t *tag,
                                squire_event *event,
                                squire_error **err);

/* A descriptor in *fd that is readable while a generation of the queue may have something to tell, for poll, epoll and what is
 * built on them: call squire_queue_next with a timeout of 0 until it says SQUIRE_TIMEOUT, then wait again. While turns of a
 * host's teacher are in the queue, call it now and then all the same: their deadlines are looked at in it. It is the queue's: it is not to be
 * read from or closed, and is gone with the queue. On an engine that the caller drives nothing moves while nobody steps. SQUIRE_E_UNSUPPORTED where the platform has none. Any thread. */
squire_status squire_queue_fd(squire_queue *queue,
                              int32_t *fd,
                              squire_error **err);

/* Frees the queue. Generations that were in it go on and are pulled by squire_gen_next. A call of squire_queue_next that waits
 * on another thread answers SQUIRE_TIMEOUT. NULL is allowed. Any thread. */
void squire_queue_release(squire_queue *queue);

/* ---- score ----------------------------------------------------------------------------------------------- */

/* Appends ids to the session as the host's and gives each one's log-prob, given all before it, with the top_k (0 for
 * none) likeliest tokens there: one row an id. ids_len times top_k may be 16777216 at most, otherwise SQUIRE_E_ARGUMENT
 * (detail BAD_OPTION). Blocks; set cancel (may be NULL) to stop it with SQUIRE_CANCELLED. The session must not be
 * empty: SQUIRE_E_STATE (detail EMPTY_SESSION). SQUIRE_E_DIVERGED (detail NOT_FINITE) where a row of logits is NaN or
 * infinite. Other errors as squire_session_sync. A call that fails or is cancelled
 * leaves the timeline as it was. Any thread. */
squire_status squire_score(squire_session *session,
                           const int32_t *ids,
                           size_t ids_len,
                           int32_t top_k,
                           const squire_cancel *cancel,
                           squire_scores **out,
                           squire_error **err);

#ifdef SQUIRE_EXPERIMENTAL

/* ---- distiller ------------------------------------------------------------------------------------------- */

/* A student that learns while it works. Its teacher is a model, of the same engine or another, or one in the
 * host's own code (squire_distiller_create_taught). Freed by squire_distiller_release. */
typedef struct squire_distiller squire_distiller;

/* What a run with these settings will do, as a JSON object: preset, steps, knobs (each with value and source), notes (what
 * the values do not say, a list of texts), and schedules (columns, rows, mean), a row a step. steps is the length of the
 * run; 0: that of the settings. Errors as squire_distiller_create. Any thread. */
squire_status squire_distiller_explain(const char *settings_json,
                                       size_t settings_len,
                                       uint64_t steps,
                                       squire_text **out,
                                       squire_error **err);

/* Makes a distiller. teacher may be NULL where nothing asks for one (imitation of demonstrations, presets "sft").
 * settings_json: {"preset": ..., and knobs}; {} for the defaults; squire_distiller_explain shows them all. The optimiser's
 * memory, 12 bytes a trained parameter, is taken by the first update. SQUIRE_E_ARGUMENT for unknown keys or values and where
 * the settings ask for a teacher that is not there, or (UNKNOWN_ADAPTER) for an adapter that it does not have, SQUIRE_E_UNSUPPORTED for settings under which nothing would be
 * learnt, SQUIRE_E_MISMATCH if the two models do not share one vocabulary (of one tokenizer they may differ in rows of
 * padding, which training leaves out), SQUIRE_E_BUDGET (with bytes needed and free) if training_budget, or what is
 * free of the engine's host_budget, cannot hold an update of one token. The models may come from
 * two engines, each with its own threads, budgets and log: the teacher's weights and its side of the episodes are paid by its own,
 * the update by the student's, and where a caller drives either, the calls that wait step it. The distiller keeps them alive. Any thread. */
squire_status squire_distiller_create(squire_model *student,
                                      squire_model *teacher,
                                      const char *settings_json,
                                      size_t settings_len,
                                      squire_distiller **out,
                                      squire_error **err);

/* Goes on from the newest checkpoint in a folder, bit for bit: the student gets the checkpoint's weights and revision.
 * SQUIRE_E_IO if there is none, SQUIRE_E_FORMAT if it is broken or a file of it is no regular one, SQUIRE_E_MISMATCH if
 * model, vocabulary or settings are not the checkpoint's, nor of an adapter the base weights, but for steps, which may be more (schedules by the fraction of
 * the run go on by the new number), and update_kl_tokens, max_update_kl, refuse_update_kl, probe_rows,
 * rollback_revisions, recompute and training_budget. Otherwise as squire_distiller_create. Blocks.
 * Any thread. */
squire_status squire_distiller_resume(squire_model *student,
                                      squire_model *teacher,
                                      const char *settings_json,
                                      size_t settings_len,
                                      const char *path,
                                      size_t path_len,
                                      squire_distiller **out,
                                      squire_error **err);

/* Whether a folder holds a checkpoint that squire_distiller_resume could go on from: SQUIRE_OK, and the newest one's step
 * in *step unless step is NULL, or SQUIRE_END where there is none or no such folder. Looks at its documents and the
 * headers of its tensors, not at their values. SQUIRE_E_FORMAT if the newest is broken, SQUIRE_E_IO if the folder cannot
 * be read. Any thread. */
squire_status squire_checkpoint_probe(const char *path, size_t path_len, uint64_t *step, squire_error **err);

/* Writes a checkpoint into a folder, which is made if it is not there, and then removes older ones and what saves that were
 * killed have left; at every moment the newest is whole. Only folders that hold exactly a checkpoint's files are ever
 * removed. Once the new one stands the answer is SQUIRE_OK: an older one that cannot be removed is a warning in the log.
 * One process at a time saves into a folder. 12 bytes a parameter. Blocks. SQUIRE_E_STATE while ended episodes wait for an
 * update (build it, or squire_distiller_discard; those that are set aside are no part of a checkpoint, of which a warning in
 * the log tells), SQUIRE_E_BUSY while an update is built or applied, SQUIRE_E_MISMATCH where checkpoints of another run lie
 * in the folder, or of a later step, SQUIRE_E_IO. Any thread. */
squire_status squire_distiller_save(squire_distiller *distiller,
                                    const char *path,
                                    size_t path_len,
                                    squire_error **err);

/* Makes the applied weights the revision that new sessions and episodes get; its number goes to *revision unless
 * revision is NULL. Without an update since, the current revision's number. squire_model_save then writes the student
 * as a model folder. SQUIRE_E_BUDGET if more than kept_revisions would be alive: end or rebase older sessions first.
 * SQUIRE_E_DIVERGED if the update moves the student beyond refuse_update_kl of the settings (detail UPDATE_TOO_FAR) or
 * has made weights that are not finite (detail NOT_FINITE): the old revision serves on, and squire_distiller_save is
 * refused likewise, so that the last checkpoint stays to be resumed; squire_distiller_rollback goes back without one.
 * SQUIRE_E_BUSY while an update is built or applied. Before it returns, what is served is compared on probe_rows tokens with what
 * was trained, bit for bit: squire_distiller_metrics has what was found, and a difference is an error in the log and no status.
 * Any thread. */
squire_status squire_distiller_publish(squire_distiller *distiller,
                                       uint64_t *revision,
                                       squire_error **err);

/* The same however far the update moves the student: for a host that looked at it. Weights that are not finite are
 * refused all the same. Any thread. */
squire_status squire_distiller_publish_anyway(squire_distiller *distiller, uint64_t *revision, squire_error **err);

/* Goes back to a published revision that rollback_revisions of the settings keeps: new sessions and episodes get its weights under a
 * new number, the current one's and 1, since a number never means two weights and staleness counts on numbers; it goes to
 * *published unless published is NULL. The current revision's own number changes nothing that is served. Either way a step that was applied
 * and not published is dropped, updates that were built before are stale, and learning goes on from what is served: masters from
 * its weights, moments of zero and a bias correction that begins anew, while the run's step and its schedules go on. It takes no
 * memory, so kept_revisions does not refuse it. A resumed run keeps none yet. SQUIRE_E_ARGUMENT (detail UNKNOWN_REVISION) for a
 * revision that is not kept; the message lists those that are, as squire_distiller_metrics does. SQUIRE_E_BUSY while an update is
 * built, applied or published. Any thread. */
squire_status squire_distiller_rollback(squire_distiller *distiller,
                                        uint64_t revision,
                                        uint64_t *published,
                                        squire_error **err);

/* Asks the teacher for one sequence twice and once in two parts, and tells how far its answers lie apart beside how far
 * teacher and student do: to be done before a run, since a teacher that moves by itself as much as it differs from the student
 * teaches noise. check_json: {"ids": [...]}, {"text": "..."} or {"tokens": 64}; {}: 64 tokens that the student says after its own
 * template (SQUIRE_E_TEMPLATE where it has none), drawn as the settings draw. The report is a JSON object: ids, positions,
 * middle, top_k; again and in_parts, each with the largest and mean difference of the log-probs of what stands there, top_largest
 * and top_mean of the likeliest ids, and share, what it is of the signal; signal (largest, mean), what teacher and student lie
 * apart; warnings, a list of texts, which the log has too. A model has 0 in again and in_parts. Keys may be added. Nothing of the
 * run changes. Blocks. A teacher of the host's is asked with an episode of UINT64_MAX, and answers within timeout_ms
 * (0: its deadline_ms; at most a day) or it is SQUIRE_E_TEACHER, as where it fails or is closed. cancel may be NULL.
 * SQUIRE_E_ARGUMENT without a teacher, for fewer than 3 ids, or for ids that are none. Any thread. */
squire_status squire_distiller_check_teacher(const squire_distiller *distiller,
                                             const char *check_json,
                                             size_t check_len,
                                             uint64_t timeout_ms,
                                             const squire_cancel *cancel,
                                             squire_text **out,
                                             squire_error **err);

/* Throws away all ended episodes that wait for an update or are set aside; how many goes to *thrown_away unless that is
 * NULL. Any thread. */
squire_status squire_distiller_discard(squire_distiller *distiller, uint64_t *thrown_away, squire_error **err);

/* The distiller's number, from 1, of which the process has no other: a teacher that several distillers share is told it with
 * each request. Any thread. */
squire_status squire_distiller_number(const squire_distiller *distiller,
                                      uint64_t *number,
                                      squire_error **err);

/* Where the run stands, as a JSON object: step, steps, beta, depth, learning_rate, revision, revisions_alive, episodes,
 * evaluations, updates, thrown_away, schedules (what else moves, by name, at this step), teacher_tokens (what the teacher said in
 * training since the last update), waiting (ended episodes that no update took yet), set_aside (those that the teacher
 * could not score; no part of a checkpoint, and no hindrance to one), kept_for_rollback (numbers of revisions), probe (of the last
 * published revision: rows, differing, largest_difference of log-probs by serving and by training; null where it was not
 * looked at), run (32 hexadecimal digits, which a resumed run keeps), recording (folder, episodes, failed: why the metrics could not
 * be written, or null; null where nothing is recorded). Keys may be added. Waits for nothing but a line
 * of the record that is being written. Any thread. */
squire_status squire_distiller_metrics(const squire_distiller *distiller,
                                       squire_text **out,
                                       squire_error **err);

/* Drops the distiller; its episodes and updates keep it. NULL is allowed. Any thread, also inside a callback. */
void squire_distiller_release(squire_distiller *distiller);

/* ---- teacher --------------------------------------------------------------------------------------------- */

/* kind: the log-probs of ids[from..] are wanted, each given all ids before it, of the raw logits at temperature 1. Answered by
 * squire_teacher_reply. */
#define SQUIRE_REQUEST_SCORES 0
#define SQUIRE_REQUEST_TURN 1 /* kind: the turn that follows the ids is wanted. Answered by squire_teacher_say or squire_teacher_say_text. */
#define SQUIRE_SAY_CUT_OFF 1 /* Of squire_teacher_say and squire_teacher_say_text: the turn ended for want of room, before the teacher was done. */

/* A teacher in the host's own code. Episodes of the distillers that it was given to ask it for scores, and for turns where it acts:
 * any number of threads take requests by squire_teacher_next and answer each by squire_teacher_reply, _say, _say_text or _fail. Shared: see
 * squire_teacher_retain. Freed by squire_teacher_release and with the last distiller that has it. */
typedef struct squire_teacher squire_teacher;

/* Requests that were taken together. Freed by squire_teacher_batch_release; what points into it lives as long. */
typedef struct squire_teacher_batch squire_teacher_batch;

/* What a teacher is asked, for scores or, where it acts, for a turn. Set up by squire_teacher_request_init. */
typedef struct {
  /* Set by _init. */
  uint32_t struct_size;
  /* How many of the most likely ids are wanted in each place; 0: none. */
  int32_t top_k;
  /* Its number, by which it is answered. */
  uint64_t number;
  /* Identity of the episode whose ids these are, among those of its distiller; UINT64_MAX: of squire_distiller_check_teacher. */
  uint64_t episode;
  /* The whole text so far as the teacher is to read it. Lives as long as the batch. */
  const int32_t *ids;
  /* How many. */
  size_t n_ids;
  /* The first id that is asked about, at least 1: the answer has n_ids - from places. n_ids where a turn is wanted. */
  size_t from;
  /* Ids that there are: those of an answer lie below. */
  size_t vocabulary;
  /* Milliseconds from squire_teacher_next on in which the answer is wanted. */
  uint64_t deadline_ms;
  /* The number of the distiller that asks, as squire_distiller_number tells it. Since 0.7, as all that follows. */
  uint64_t distiller;
  /* Updates that were applied when the episode began. */
  uint64_t step;
  /* The student's revision that acts in it. */
  uint64_t revision;
  /* One of SQUIRE_REQUEST_... Since 0.8, as all that follows, which is of a turn and 0 or NULL where scores are wanted. */
  int32_t kind;
  /* As the settings draw: the most likely ids to draw from; 0: all. */
  int32_t draw_top_k;
  /* Draw from the fewest most likely ids whose probabilities reach this together; 1: from all. */
  double top_p;
  /* Temperature to draw at; 0: the most likely id. */
  double temperature;
  /* The seed of this turn's draws, for teachers that take one. */
  uint64_t seed;
  /* Tokens of the turn at most, the one that ends it among them; of a text as the teacher counts them. */
  size_t max_tokens;
  /* Ids that end a turn. They live as long as the batch, as does the text. */
  const int32_t *stop_ids;
  /* How many. */
  size_t n_stop_ids;
  /* What was said so far as the teacher is to read it, as a JSON list of messages (UTF-8, not ended by NUL). NULL where ids were
   * observed. */
  const char *messages;
  /* Its bytes. */
  size_t messages_len;
  /* Texts that end a turn (UTF-8, not ended by NUL): it ends with the token that completes the first of them, and what is said
   * behind that does not count. They live as long as the batch. Since 0.11, as all that follows. */
  const squire_stop_string *stop_strings;
  /* How many. */
  size_t n_stop_strings;
  /* Milliseconds that were left of the turn's time limit when this was filled; what is said later is not taken. 0: it has none,
   * or none is left and nobody waits. */
  uint64_t time_left_ms;
} squire_teacher_request;

/* Sets up a request: squire_teacher_request_init(&r, sizeof r). NULL, and a size that no struct has, does nothing. Any
 * thread, also inside a callback. */
void squire_teacher_request_init(squire_teacher_request *request, size_t size);

/* Makes a teacher that nobody has asked yet. options_json: {"vocabulary", "top_k", "deadline_ms", "acts", "scores"}. vocabulary says how its
 * ids are known to mean what the student's mean, and must be there: {"tokenizer": path of its tokenizer.json},
 * {"fingerprint": 16 hex digits}, "the-students", where the host knows that it is, or "another",
 * where it is known to be another: such a teacher acts, by text, and scores nothing. acts (false; of another vocabulary true): it
 * takes turns; scores (true; of another vocabulary false): it scores what was said; one of them it must. top_k (0 to 1024; 0): most likely ids
 * that it gives in each place. deadline_ms (60000): how long an answer may take from squire_teacher_next on; a request that
 * nobody takes runs out when a build, or whoever pulls a turn, has waited so long. SQUIRE_E_ARGUMENT for unknown keys or values, SQUIRE_E_IO and
 * SQUIRE_E_FORMAT for the tokenizer. Any thread. */
squire_status squire_teacher_create(const char *options_json,
                                    size_t options_len,
                                    squire_teacher **out,
                                    squire_error **err);

/* Adds a reference and gives the same pointer; NULL for NULL. Any thread, also inside a callback. */
squire_teacher *squire_teacher_retain(squire_teacher *teacher);

/* Drops a reference. Distillers keep their teacher; without anybody who answers its requests run out. NULL is allowed. Any
 * thread, also inside a callback. */
void squire_teacher_release(squire_teacher *teacher);

/* Takes up to most requests that wait, in the order in which they were asked, each once. Blocks until there is one:
 * SQUIRE_TIMEOUT, and *out NULL, where none comes within timeout_ms (0: looks and does not wait; at most a day); SQUIRE_END,
 * and *out NULL, at once where the teacher is closed, and for ever after. What is
 * taken must be answered, or it runs out. SQUIRE_E_ARGUMENT for a most of 0. Any thread, any number of them at once. */
squire_status squire_teacher_next(squire_teacher *teacher,
                                  size_t most,
                                  uint64_t timeout_ms,
                                  squire_teacher_batch **out,
                                  squire_error **err);

/* Request i of a batch; SQUIRE_END past the last, and *request stays as it was. Any thread. */
squire_status squire_teacher_batch_request(const squire_teacher_batch *batch,
                                           size_t i,
                                           squire_teacher_request *request,
                                           squire_error **err);

/* Frees the batch; its requests wait for their answers all the same. NULL is allowed. Any thread, also inside a callback. */
void squire_teacher_batch_release(squire_teacher_batch *batch);

/* Answers a request. ids repeats the n_ids ids that were asked about, ids[from..] of the request, and logprobs has one log-prob
 * (nats) for each. top_ids and top_logprobs have n_top entries, top_k for each place one behind another, in any order, each
 * place's ids all different; both NULL where top_k is 0. An answer that does not fit is SQUIRE_E_MISMATCH (detail
 * TEACHER_REPLY), names the position, and the request waits on: another length, other ids, log-probs that are not finite or
 * above 0 (a missing one is never 0), ids beyond the vocabulary or twice. SQUIRE_E_STATE (detail TEACHER_REQUEST) where no
 * request of this number waits, with what became of it. What the arrays hold is copied. Any thread. */
squire_status squire_teacher_reply(squire_teacher *teacher,
                                   uint64_t number,
                                   const int32_t *ids,
                                   size_t n_ids,
                                   const float *logprobs,
                                   const int32_t *top_ids,
                                   const float *top_logprobs,
                                   size_t n_top,
                                   squire_error **err);

/* Answers a request for a turn with n_ids ids of the student's vocabulary, the one that ends the turn (one of stop_ids) included, and
 * their log-probs (nats, of the raw logits at temperature 1), n_logprobs of them: as many, or 0 where they are not known. They are
 * the turn as they stand, up to the one that completes the first of its stop_strings; whoever pulls its generation gets them at once. A turn that
 * ends by neither has max_tokens ids, or SQUIRE_SAY_CUT_OFF in flags. What does not fit is SQUIRE_E_MISMATCH (detail TEACHER_REPLY), and the request waits on: none or
 * too many ids, ids beyond the vocabulary or behind one that ends a turn, log-probs as squire_teacher_reply refuses them, a teacher
 * of another vocabulary. SQUIRE_E_STATE (detail TEACHER_REQUEST) where no request of this number waits. Any thread. */
squire_status squire_teacher_say(squire_teacher *teacher,
                                 uint64_t number,
                                 const int32_t *ids,
                                 size_t n_ids,
                                 const float *logprobs,
                                 size_t n_logprobs,
                                 uint32_t flags,
                                 squire_error **err);

/* Answers a request for a turn with a text (UTF-8), without what ends the turn, for teachers whose ids are not known here or are
 * another vocabulary's. It becomes ids as a replayed text does (squire_episode_replay_text), which need not be those that the
 * teacher said: the trace says so of the turn (from_text). SQUIRE_E_MISMATCH (detail TEACHER_REPLY) where it is
 * more than the student's context has room for, SQUIRE_E_IO (detail MISSING_FILE) where the student has no tokenizer; the request
 * waits on. Otherwise as squire_teacher_say. Any thread. */
squire_status squire_teacher_say_text(squire_teacher *teacher,
                                      uint64_t number,
                                      const char *text,
                                      size_t text_len,
                                      uint32_t flags,
                                      squire_error **err);

/* Says that a request cannot be answered, and why. Of scores, its episode is set aside with that reason, and a later build asks
 * again; of a turn, its generation fails (SQUIRE_E_TEACHER, detail TEACHER_FAILED) and the turn is taken again, or by the student
 * (setting teacher_fails).
 * SQUIRE_E_STATE (detail TEACHER_REQUEST) where no request of this number waits. Any thread. */
squire_status squire_teacher_fail(squire_teacher *teacher,
                                  uint64_t number,
                                  const char *why,
                                  size_t why_len,
                                  squire_error **err);

/* Closes the teacher, for good: everybody who waits in squire_teacher_next returns at once with SQUIRE_END, requests that
 * nobody took are refused, and so is whatever is asked from now on, with SQUIRE_E_TEACHER (detail TEACHER_CLOSED) where a build
 * would have waited. Requests that were taken may still be answered. A second time it does nothing. Any thread. */
squire_status squire_teacher_close(squire_teacher *teacher,
                                   squire_error **err);

/* Makes a distiller whose teacher is the host's. SQUIRE_E_ARGUMENT where the settings ask it for what it does not give: turns, scores,
 * or distributions while its top_k is 0; SQUIRE_E_MISMATCH (detail TEACHER_VOCABULARY) where its
 * fingerprint is not that of the student's tokenizer. Otherwise as squire_distiller_create. Any thread. */
squire_status squire_distiller_create_taught(squire_model *student,
                                             squire_teacher *teacher,
                                             const char *settings_json,
                                             size_t settings_len,
                                             squire_distiller **out,
                                             squire_error **err);

/* Goes on from the newest checkpoint in a folder with a teacher of the host's: as squire_distiller_resume and
 * squire_distiller_create_taught. Blocks. Any thread. */
squire_status squire_distiller_resume_taught(squire_model *student,
                                             squire_teacher *teacher,
                                             const char *settings_json,
                                             size_t settings_len,
                                             const char *path,
                                             size_t path_len,
                                             squire_distiller **out,
                                             squire_error **err);

/* ---- episode --------------------------------------------------------------------------------------------- */

#define SQUIRE_ACTOR_STOP 0 /* actor: nobody, the rollout ends here. */
#define SQUIRE_ACTOR_STUDENT 1 /* actor: the student samples. */
#define SQUIRE_ACTOR_TEACHER 2 /* actor: the teacher samples. */
#define SQUIRE_ACTOR_REPLAY 3 /* actor: a demonstration is replayed. */
#define SQUIRE_REASON_METHOD 1 /* reason: the method always lets this actor act. */
#define SQUIRE_REASON_CURRICULUM 2 /* reason: drawn against the teacher's share at this step. */
#define SQUIRE_REASON_DEPTH_CAP 3 /* reason: the depth curriculum ends the rollout here. */
#define SQUIRE_REASON_HOST_OVERRIDE 4 /* reason: the host asked for this actor. */
#define SQUIRE_REASON_EVALUATION 5 /* reason: an evaluation episode is the student's alone. */
#define SQUIRE_REASON_TEACHER_NOT_ABLE 6 /* reason: the teacher's turn, but there is no teacher, so the student acts. */
#define SQUIRE_REASON_REPLAY_ENDED 7 /* reason: the demonstration has no action for this turn. */
#define SQUIRE_REASON_TURN_CAP 8 /* reason: the episode's turn cap is reached. */
#define SQUIRE_REASON_TEACHER_SPENT 9 /* reason: the teacher's turn, but its tokens until the next update are spent, so the student acts. */
#define SQUIRE_REASON_PROPOSAL 10 /* reason: the student proposes; when it has spoken, squire_episode_judge says whether that stands. */
#define SQUIRE_REASON_PROPOSAL_STANDS 11 /* reason: what the student proposed stands; the outcome is due. */
#define SQUIRE_REASON_PROPOSAL_REPLACED 12 /* reason: what the student proposed was too uncertain and is dropped; the teacher acts in its place. */
#define SQUIRE_REASON_TEACHER_FAILED 13 /* reason: the teacher's turn, but it failed to take it, so the student acts (setting teacher_fails). Since 0.8. */
#define SQUIRE_OUTCOME_HAS_REWARD 1 /* Of squire_episode_outcome: reward is given. */
#define SQUIRE_OUTCOME_EXECUTED_OTHER 2 /* Of squire_episode_outcome: the host executed something other than what was said; the turn carries no loss. */

/* One run of the host's environment. Freed by squire_episode_release; without squire_episode_end it is thrown away.
* 
 * The order: begin; then for each turn observe once or more, decide, perhaps override, then act (and pull the generation
 * to its end) or replay, then outcome; at last end. Any other order is SQUIRE_E_STATE (detail OUT_OF_ORDER), names the
 * expected call and changes nothing. */
typedef struct squire_episode squire_episode;

/* What squire_episode_decide gives. Set up by squire_decision_init. */
typedef struct {
  /* Set by _init. */
  uint32_t struct_size;
  /* One of SQUIRE_ACTOR_... */
  int32_t actor;
  /* One of SQUIRE_REASON_... */
  int32_t reason;
  /* 1 if the turn's tokens will carry loss, else 0. */
  int32_t train_on_this;
  /* The turn, counted from 0. */
  uint32_t turn;
  /* Turns left to the cap in force, this one included; 0 when the rollout ends. */
  uint32_t horizon;
  /* The teacher's share that the draw was held against; 0 in evaluation. */
  double probability;
  /* Identity of the episode. */
  uint64_t episode;
  /* The update at which the episode began, which fixes its share and depth. */
  uint64_t step;
  /* Revision that the student acts with. */
  uint64_t revision;
} squire_decision;

/* Sets up a decision: squire_decision_init(&d, sizeof d). NULL, and a size that no struct has, does nothing. Any thread,
 * also inside a callback. */
void squire_decision_init(squire_decision *decision, size_t size);

/* Begins an episode on the student's current revision. spec_json: {"task", "group": the name of the episodes with which its rewards are
 * compared (those of its task, where there is none), "panel" and "task_seed": for the record, the fixed set of tasks that it is of and the environment's seed, "episode", "evaluation", "max_turns",
 * "demonstration": a list of texts, "teacher_prefix": messages that the teacher alone is shown, before everything else, and "tools", "documents", "chat_template", "chat_template_kwargs": what every prompt
 * is rendered with, as in squire_chat_render}, all optional but for what the settings build on: actor prefix wants a demonstration,
 * and rewards that are compared a group or a task; {} for a training episode. Takes one session of the
 * engine's, and one more if there is a teacher and it is no evaluation. SQUIRE_E_ARGUMENT for unknown keys or values, SQUIRE_E_BUDGET if
 * max_sessions exist; of settings with teacher_adapter also the errors of squire_session_create_on. Any thread. */
squire_status squire_episode_begin(squire_distiller *distiller,
                                   const char *spec_json,
                                   size_t spec_len,
                                   squire_episode **out,
                                   squire_error **err);

/* Forks an episode at a turn: *out is a new episode that stands where this one stands between two turns, or stood before
 * the turn that is asked for, with what was observed for it; who acts is decided anew. fork_json: {"episode": its number,
 * the key of its draws (the next), "turn": the first turn of its own, counted from 0 (the present one), "train_prefix":
 * whether the turns before carry loss in it too (false: they are learnt from this episode alone), "demonstration": texts
 * from turn 0 on, and "max_turns" (this episode's)}, all optional; NULL with length 0 is {}. Task, step, revision, options
 * of prompts, and whether it is an evaluation are this episode's; its trace says where it was forked. Computes nothing,
 * and nothing that was computed is computed again: pages of KV are shared until one writes (squire_episode_prefill
 * computes first). Takes as many sessions as squire_episode_begin. Neither needs the other afterwards. SQUIRE_E_STATE
 * while a turn is said or waits for its outcome, and after the end; SQUIRE_E_BUSY while a generation runs;
 * SQUIRE_E_ARGUMENT for unknown keys or values and a turn that is not reached yet; SQUIRE_E_BUDGET if max_sessions exist.
 * Any thread. */
squire_status squire_episode_fork(const squire_episode *episode,
                                  const char *fork_json,
                                  size_t fork_len,
                                  squire_episode **out,
                                  squire_error **err);

/* Computes what stands in the episode, so that forks made afterwards share it: the student's side, and the teacher's where the
 * settings ask for a teacher. Blocks. cancel (may be NULL) stops it with SQUIRE_CANCELLED between two chunks, and what is
 * computed by then stays. Nothing to compute is no failure. SQUIRE_E_STATE and SQUIRE_E_BUSY as squire_episode_fork,
 * SQUIRE_E_BUDGET if the KV budget runs out. Any thread. */
squire_status squire_episode_prefill(squire_episode *episode,
                                     const squire_cancel *cancel,
                                     squire_error **err);

/* Shows messages to the actors: messages_json is a list of {"role", "content", ...}, or an object {"messages": that
 * list, "teacher_messages": a list that the teacher is shown in its place (empty: nothing), "tools", "documents",
 * "chat_template", "chat_template_kwargs": what this turn, its further messages and its generation prompt included, is
 * rendered with over the episode's own}, rendered by the student's template; what they say never becomes control. *added,
 * unless added is NULL, gets the number of tokens that the student reads. Computes nothing. SQUIRE_E_TEMPLATE without a
 * template, SQUIRE_E_CONTEXT_FULL, SQUIRE_E_ARGUMENT, SQUIRE_E_STATE. Any thread. */
squire_status squire_episode_observe(squire_episode *episode,
                                     const char *messages_json,
                                     size_t messages_len,
                                     uint64_t *added,
                                     squire_error **err);

/* squire_episode_observe that cancel (may be NULL) stops from another thread as squire_chat_render_until is stopped:
 * SQUIRE_CANCELLED, and the episode is as it was. For environments that may say much. */
squire_status squire_episode_observe_until(squire_episode *episode,
                                           const char *messages_json,
                                           size_t messages_len,
                                           const squire_cancel *cancel,
                                           uint64_t *added,
                                           squire_error **err);

/* The same with ids, for hosts that render for themselves and for models without a tokenizer. Ids that begin the actor's
 * turn, as a rendering with add_generation_prompt does, begin it: no generation prompt is added then. SQUIRE_E_ARGUMENT
 * while a teacher_prefix waits for messages. Any thread. */
squire_status squire_episode_observe_ids(squire_episode *episode,
                                         const int32_t *ids,
                                         size_t ids_len,
                                         squire_error **err);

/* The same where the teacher is to read other ids: teacher_ids in the place of ids, none of them shows it nothing. Both begin
 * the actor's turn, with the same ids, or neither does: squire_episode_decide and _override refuse the rest with
 * SQUIRE_E_ARGUMENT, and more may be observed then. Where nobody teaches, as in an evaluation, teacher_ids are not read.
 * SQUIRE_E_CONTEXT_FULL where the teacher's context has no room. Any thread. */
squire_status squire_episode_observe_view_ids(squire_episode *episode,
                                              const int32_t *ids,
                                              size_t ids_len,
                                              const int32_t *teacher_ids,
                                              size_t teacher_ids_len,
                                              squire_error **err);

/* Decides who acts: no model work, and the same answer for the same (seed, episode, turn, step); asked again before
 * anybody acts, the same again. decision is filled. SQUIRE_E_STATE before anything was observed, SQUIRE_E_ARGUMENT
 * where ids begin the actor's turn for the student and the teacher's view otherwise, or the teacher was shown nothing, SQUIRE_E_BUSY
 * where a view is to be looked at while the episode is prefilled. Any thread. */
squire_status squire_episode_decide(squire_episode *episode,
                                    squire_decision *decision,
                                    squire_error **err);

/* Lets an actor (SQUIRE_ACTOR_STUDENT, _TEACHER or _REPLAY) act in this turn, whatever the curriculum says. decision is
 * filled unless it is NULL. SQUIRE_E_ARGUMENT for an actor that the episode does not have. Any thread. */
squire_status squire_episode_override(squire_episode *episode,
                                      int32_t actor,
                                      squire_decision *decision,
                                      squire_error **err);

/* Starts the decided actor's turn: pull the generation to its end, what it sampled is the turn. options may be NULL.
 * Temperature, top_k and top_p are the settings' in training and those of options, then the student's own, in evaluation;
 * the seed is the episode's own. Stop ids, stop strings, max_tokens, time_limit_ms and cancel count, in training too: they change nothing of what is drawn,
 * the turn is the ids that stand there when it ends, and the trace says what ended it (ended_by). Options that would not count, the seed and in training the first three, must be unset:
 * SQUIRE_E_ARGUMENT (detail BAD_OPTION). After a generation that was cancelled, failed or ran into a limit, act may be called again and goes on where it
 * stopped, and of one without a token the turn is still to be acted; a stop string is looked for in what one generation says; after a failed one override hands the turn over from its beginning, and squire_episode_end drops it. A teacher of the
 * host's is asked for its turn, which comes as a whole or not at all, within its time limit; SQUIRE_E_TEACHER (detail TEACHER_CLOSED) where it is closed.
 * Errors as squire_gen_start, and SQUIRE_E_STATE. Any thread. */
squire_status squire_episode_act(squire_episode *episode,
                                 const squire_gen_options *options,
                                 squire_gen **out,
                                 squire_error **err);

/* Writes down ids as this turn's action, the end of turn included; the decision must be replay. SQUIRE_E_ARGUMENT for no
 * ids or ids outside the vocabulary, SQUIRE_E_CONTEXT_FULL, SQUIRE_E_STATE. Any thread. */
squire_status squire_episode_replay_ids(squire_episode *episode,
                                        const int32_t *ids,
                                        size_t ids_len,
                                        squire_error **err);

/* The same with text, tokenised as an assistant's message is: tokens that are not special, such as `<think>` and
 * `<tool_call>`, keep their ids, special ones are text. The id with which the template ends a turn is added (without one
 * the first stop id). What the turn's generation prompt has written of the text already, such as an empty thought, is
 * left out; the rest stands exactly as given. Any thread. */
squire_status squire_episode_replay_text(squire_episode *episode,
                                         const char *text,
                                         size_t text_len,
                                         squire_error **err);

/* The same with this turn's action from the demonstration in the episode's specification. SQUIRE_E_ARGUMENT if it has
 * none. Any thread. */
squire_status squire_episode_replay_stored(squire_episode *episode, squire_error **err);

/* Says whether what the student proposed for this turn stands (settings with actor kind proposal), once it has spoken. decision
 * is filled: the student, whose outcome is due, or the teacher, which acts next while the proposal is dropped. Asked again it
 * answers the same. Where the teacher is the judge it computes the proposal and the call blocks; cancel (may be NULL) stops it with
 * SQUIRE_CANCELLED, and it may be judged again. SQUIRE_E_STATE where nothing was proposed, another call
 * judges, or the student was cancelled or failed before it had finished (squire_episode_override takes it as it stands, or drops
 * it for another actor); SQUIRE_E_BUSY while the student speaks, SQUIRE_E_DIVERGED where the judge's log-probs are no numbers, SQUIRE_E_BUDGET if the KV budget
 * runs out, SQUIRE_E_TEACHER where the host's teacher is the judge and fails or is silent. Any thread. */
squire_status squire_episode_judge(squire_episode *episode,
                                   squire_decision *decision,
                                   const squire_cancel *cancel,
                                   squire_error **err);

/* Ends the turn, once its generation has ended. reward counts with SQUIRE_OUTCOME_HAS_REWARD in flags and must be a
 * number within +-1e9; SQUIRE_OUTCOME_EXECUTED_OTHER takes the turn out of the loss. SQUIRE_E_BUSY while the generation runs,
 * SQUIRE_E_STATE, SQUIRE_E_ARGUMENT. Any thread. */
squire_status squire_episode_outcome(squire_episode *episode,
                                     double reward,
                                     uint32_t flags,
                                     squire_error **err);

/* Ends the episode with the host's score, a number within +-1e9, and verdict: success 1, failure 0, not known -1. A
 * training episode then waits for an update, and what the teacher has not computed of it yet is computed in the rounds
 * of whoever else runs. SQUIRE_E_BUSY while a generation runs, SQUIRE_E_STATE, SQUIRE_E_ARGUMENT. Any thread. */
squire_status squire_episode_end(squire_episode *episode, double score, int32_t success, squire_error **err);

/* The record so far, as a JSON object: episode, run, step, task, panel, task_seed, seed, revision, evaluation, forked_from (episode and turn, or
 * null), group, score, success, turns (actor, start, end, reason, probability, horizon, reward, kernel, weight, train, left_out: whether it was taken out of the loss, truncated: whether
 * a limit cut it off, ended_by: what ended it, "stop_id", "stop_string", "max_tokens", "context", "time", "cut_off" (a teacher of the host's said so), "cancelled", "failed", or null of a replay,
 * stop_string: the one that did, or null, from_text: whether its ids were made of a text of the teacher's, view: where it starts for the teacher, or null), views (start, end, ids: what the
 * teacher read in place of these tokens), phase (the
 * calls that are expected now), and arrays with an entry a token: ids, sources, logprobs, sampled_logprobs. Keys may be
 * added. SQUIRE_E_BUSY while a generation runs. Any thread. */
squire_status squire_episode_trace(const squire_episode *episode,
                                   squire_text **out,
                                   squire_error **err);

/* Frees the episode; without squire_episode_end it is thrown away. Its generation may go on. NULL is allowed. Any thread,
 * also inside a callback. */
void squire_episode_release(squire_episode *episode);

/* ---- update ---------------------------------------------------------------------------------------------- */

#define SQUIRE_DTYPE_F32 0 /* dtype of a tensor: IEEE 754 single precision. */

/* Gradients with their report. Freed by squire_update_release. */
typedef struct squire_update squire_update;

/* Takes a tensor: its name (UTF-8, not ended by NUL), one of SQUIRE_DTYPE_..., its shape of rank extents, outermost
 * first, and its elements without gaps, bytes in all. Everything lives until the callback returns. Return 0 to go on,
 * anything else to stop: the call then answers SQUIRE_CANCELLED. Called on the thread of the call that was given it.
 * Must not throw or jump out. */
typedef int32_t (*squire_tensor_fn)(void *user,
                                    const char *name,
                                    size_t name_len,
                                    int32_t dtype,
                                    const uint64_t *shape,
                                    size_t rank,
                                    const void *data,
                                    size_t bytes);

/* Builds an update from up to max_episodes ended episodes (0: batch_episodes of the settings), in the order of their
 * identity; further ones wait for the next. Blocks: it waits for
 * the teacher and computes gradients, while sessions go on being served. progress (may be NULL) hears of tokens (phase
 * "update") on the calling thread, of none done while the teacher is waited for, and then before each layer and each chunk
 * of rows with losses, so often with the same number done; it and cancel (may be NULL) stop the build there with
 * SQUIRE_CANCELLED. It may use the engine, and wait. Stopped or failed, the episodes wait on. An episode that the teacher cannot
 * score is set aside and the next one takes its place: report and log name it with the reason. Later builds ask again
 * where memory was lacking, and a teacher of the host's that failed or was silent is asked anew at once; any other stays until
 * squire_distiller_discard. Where none is left the build fails with
 * the first reason. SQUIRE_E_STATE if no token carries loss (detail NOTHING_TO_LEARN) or the settings' steps are all
 * done (detail RUN_COMPLETE; a resumed run may have more), SQUIRE_E_BUSY while another
 * update is built or applied, SQUIRE_E_DIVERGED if loss or gradients are not finite, SQUIRE_E_TEACHER,
 * SQUIRE_E_BUDGET (with bytes needed and free) if the batch does not fit training_budget or what is free of the engine's
 * host_budget, before anything is computed or taken, SQUIRE_E_HOST_MEMORY. Any thread. */
squire_status squire_update_build(squire_distiller *distiller,
                                  uint32_t max_episodes,
                                  const squire_cancel *cancel,
                                  squire_progress_fn progress,
                                  void *progress_user,
                                  squire_update **out,
                                  squire_error **err);

/* The account of the update, as a JSON object: step, loss, reverse_kl, forward_kl, jsd, cross_entropy,
 * sampled_reverse_kl (nats a token; null without such a token), loss_by_turn, counts of episodes, turns and tokens by actor, successes, stale, filtered,
 * set_aside (a list of {"episode", "reason"}), compared, differing, largest_difference (log-probs of rollout and
 * training), gradient_norm, update_kl, warnings (a list of texts: what the numbers do not mean), seconds. update_kl is null until the update is applied, and then how far it
 * moves the student: the mean KL in nats a token from the revision that was served to what publishing would serve,
 * over at most update_kl_tokens trained tokens (null again where none are asked for or it is no finite number). Beside losses, means
 * in nats over trained tokens: entropy, teacher_entropy (null of a teacher that gives its most likely ids alone), log_ratio
 * (|ln p - ln q| of what stands there), teacher_mass (the student's probability of the teacher's most likely ids); turns, a list by
 * index of {"tokens", "loss_share", "log_ratio", "teacher_nll", "teacher_entropy", "entropy", "episodes", "student", "teacher",
 * "replay"}; response_length (tokens of a student's turn), repetition and executed_otherwise (shares of turns), lag {"mean",
 * "largest"}, rewards {"mean", "least", "largest", "clipped": tokens with a reward that a bound of ratio holds} or null,
 * clipped_advantages (tokens whose teacher's part advantage.shape holds), by_task {task: [successes, episodes]}, teacher_seconds (what
 * the build waited for the teacher). Keys may be added. Any thread. */
squire_status squire_update_report(const squire_update *update,
                                   squire_text **out,
                                   squire_error **err);

/* Hands every gradient to a function, one tensor a call, f32, by its Hugging Face name: for hosts with an optimiser of
 * their own, or that average over a fleet. Of an adapter they have PEFT's names, and lora_B comes transposed, [rank,
 * outputs]. Any thread. */
squire_status squire_update_gradients(const squire_update *update,
                                      squire_tensor_fn tensor,
                                      void *tensor_user,
                                      squire_error **err);

/* Applies the update: one step of the optimiser on the distiller's f32 masters. The student serves the result once it is
 * published. How far that moves it is then in the update's report, and in the log as a warning beyond max_update_kl of the
 * settings. An update is applied once, and only at the step that it was built for: SQUIRE_E_STATE (detail
 * STALE_UPDATE). SQUIRE_E_ARGUMENT (detail FOREIGN_HANDLE) for another distiller's, SQUIRE_E_BUSY, SQUIRE_E_HOST_MEMORY.
 * Any thread. */
squire_status squire_update_apply(squire_distiller *distiller,
                                  squire_update *update,
                                  squire_error **err);

/* Frees the update; not applied, it changes nothing. Its episodes are spent. NULL is allowed. Any thread, also inside a
 * callback. */
void squire_update_release(squire_update *update);

/* ---- record ---------------------------------------------------------------------------------------------- */

#define SQUIRE_SOURCE_HOST 0 /* Of squire_trajectory_sources: text of the host. */
#define SQUIRE_SOURCE_GLUE 1 /* Of the same: markers of the chat template. */
#define SQUIRE_SOURCE_STUDENT 2 /* Of the same: sampled by the student. */
#define SQUIRE_SOURCE_TEACHER 3 /* Of the same: said by the teacher. */
#define SQUIRE_SOURCE_REPLAY 4 /* Of the same: an action of a demonstration. */

/* A record that was read. Freed by squire_record_release. */
typedef struct squire_record squire_record;

/* An episode token by token, as it stood when it was asked for. Freed by squire_trajectory_release. */
typedef struct squire_trajectory squire_trajectory;

/* Writes from now on every episode that ends, what the host's teacher says of it, and what becomes of the run into a folder, made if
 * it is not there: record.jsonl and metrics.jsonl, whose form docs/record.md has. recording_json: {"texts": whether episodes come with texts
 * for people, true}. A distiller that is resumed from a checkpoint is the same run and goes on in its folder. The record comes first: an episode
 * that cannot be written has not ended (squire_episode_end answers SQUIRE_E_IO and may be called again); where the metrics alone cannot be
 * written the log says so and the run goes on. With path NULL and length 0 nothing more is written, whatever the options. SQUIRE_E_IO, SQUIRE_E_BUSY (detail RECORD_IN_USE) where another distiller writes
 * into the folder, SQUIRE_E_MISMATCH where another run lies in it, SQUIRE_E_FORMAT where something else does. Any thread. */
squire_status squire_distiller_record(squire_distiller *distiller,
                                      const char *path,
                                      size_t path_len,
                                      const char *recording_json,
                                      size_t recording_len,
                                      squire_error **err);

/* Reads a record: a file, or the one in a run's folder. Every line is checked; of several episodes of one identity the last one counts, and a last line
 * that was cut off is left out. Blocks. SQUIRE_E_IO, SQUIRE_E_FORMAT with the line (detail RECORD_VERSION where it is of a later squire). Any
 * thread. */
squire_status squire_record_open(const char *path,
                                 size_t path_len,
                                 squire_record **out,
                                 squire_error **err);

/* What a record holds, as a JSON object: runs (run, episodes, vocabulary, rows, settings, fingerprint), episodes, evaluations (which are
 * among them), scored (those of which the host's teacher spoke), superseded (that stood there again), cut (bytes of a last line that was cut
 * off, or null). Keys may be added. Any thread. */
squire_status squire_record_info(const squire_record *record,
                                 squire_text **out,
                                 squire_error **err);

/* Episodes of a record, evaluations too. Any thread. */
squire_status squire_record_count(const squire_record *record, size_t *count, squire_error **err);

/* An episode of a record, counted from 0 in the order of the file. SQUIRE_E_ARGUMENT for an index that is not below
 * squire_record_count. Any thread. */
squire_status squire_record_episode(const squire_record *record,
                                    size_t index,
                                    squire_trajectory **out,
                                    squire_error **err);

/* Frees a record. NULL is allowed. Any thread, also inside a callback. */
void squire_record_release(squire_record *record);

/* Lets up to max_episodes (0: all) episodes of a record that this run has not had wait for an update, in the order of their numbers, as if they
 * had just been played: under the settings that they were played under, the update is the same bit for bit. Under others their losses are those of the
 * distiller's settings. What the host's teacher said comes from the record; a teacher that is a model computes its part when an update takes the
 * episode, and the host's is asked where the record lacks what the settings ask for. The answer is a JSON object: episodes (that wait now), evaluations (never
 * learnt), known (had before: played by this run, or imported, also before the checkpoint that it was resumed from), left (beyond max_episodes),
 * other_settings and unscored (of those that wait). SQUIRE_E_MISMATCH where the record is of another vocabulary, or an episode longer than
 * the student's context; nothing is taken then. Any thread. */
squire_status squire_distiller_import(squire_distiller *distiller,
                                      const squire_record *record,
                                      uint64_t max_episodes,
                                      squire_text **out,
                                      squire_error **err);

/* Every token of an episode so far, the turn under way as far as it is said. SQUIRE_E_BUSY while a generation runs. Any thread. */
squire_status squire_episode_trajectory(const squire_episode *episode,
                                        squire_trajectory **out,
                                        squire_error **err);

/* T token ids, their number in *len unless len is NULL; T is that of all arrays of an episode. They live as long as the object. NULL and 0 for
 * NULL. Any thread, also inside a callback. */
const int32_t *squire_trajectory_ids(const squire_trajectory *trajectory,
                                     size_t *len);

/* Who wrote each token, T of SQUIRE_SOURCE_..., otherwise as squire_trajectory_ids. Any thread, also inside a callback. */
const uint8_t *squire_trajectory_sources(const squire_trajectory *trajectory, size_t *len);

/* Log-probs in nats at temperature 1 over the whole vocabulary, T of them, NaN where nothing was sampled or it is not known,
 * otherwise as squire_trajectory_ids. Any thread, also inside a callback. */
const float *squire_trajectory_logprobs(const squire_trajectory *trajectory,
                                        size_t *len);

/* The same of the distribution that was drawn from. Any thread, also inside a callback. */
const float *squire_trajectory_sampled_logprobs(const squire_trajectory *trajectory, size_t *len);

/* What the host's teacher said of each token, T log-probs, NaN of which it said nothing, of an episode of a record; of length 0 where it
 * said nothing of the episode. Any thread, also inside a callback. */
const float *squire_trajectory_teacher_logprobs(const squire_trajectory *trajectory,
                                                size_t *len);

/* Its most likely ids, N times K: K of each of the N tokens that it said something of, one token after the other. Any thread, also
 * inside a callback. */
const int32_t *squire_trajectory_teacher_top_ids(const squire_trajectory *trajectory,
                                                 size_t *len);

/* Their log-probs, N times K. Any thread, also inside a callback. */
const float *squire_trajectory_teacher_top_logprobs(const squire_trajectory *trajectory, size_t *len);

/* The rest of the episode, as a JSON object ended by NUL, its length without the NUL in *len unless len is NULL: what
 * squire_episode_trace has without an entry a token, and of a record also settings (their fingerprint) and of each turn before and text. Keys may be added. It
 * lives as long as the object. NULL and 0 for NULL. Any thread, also inside a callback. */
const char *squire_trajectory_json(const squire_trajectory *trajectory,
                                   size_t *len);

/* Frees a trajectory. NULL is allowed. Any thread, also inside a callback. */
void squire_trajectory_release(squire_trajectory *trajectory);

#endif /* SQUIRE_EXPERIMENTAL */

#ifdef __cplusplus
}
#endif

#endif /* SQUIRE_H */
