//! One opaque error for the whole crate.
//!
//! Every distinguishable fault has an entry in the table below: a stable number (what C sees as the
//! detail code), the status it maps to, and one sentence. The message names the object, what was
//! wanted and what was found, and the next move where there is one. Numbers are never reused.
#![forbid(unsafe_code)]

use std::fmt;

/// What a caller can act on. The numbers are the `squire_status` values of the C interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Status {
    /// Not an error: the caller cancelled the call, and the state is that of the last whole token.
    Cancelled = 3,
    /// A parameter is wrong in itself: NULL, out of range, not UTF-8, unknown key.
    Argument = -1,
    /// The call is not allowed now; the message names the expected one.
    State = -2,
    /// Another call is working on this object.
    Busy = -3,
    /// The caller was compiled against an incompatible header.
    Abi = -4,
    /// Understood, but not built, or not supported by this version.
    Unsupported = -5,
    /// The operating system refused a file operation.
    Io = -6,
    /// A file's bytes contradict its format.
    Format = -7,
    /// Two things that must agree do not.
    Mismatch = -8,
    /// Host memory could not be had.
    HostMemory = -9,
    /// Device memory could not be had.
    DeviceMemory = -10,
    /// A budget set by the caller would be exceeded.
    Budget = -11,
    /// The session has no room for more tokens.
    ContextFull = -12,
    /// A grammar is wrong or cannot be satisfied.
    Grammar = -13,
    /// The chat template failed.
    Template = -14,
    /// The device reported an error.
    Device = -15,
    /// The device is gone for this process.
    DeviceLost = -16,
    /// The teacher failed or did not answer in time.
    Teacher = -17,
    /// An update is not finite, or moves the student too far; the weights that are served are unchanged.
    Diverged = -18,
    /// An earlier panic made this object unusable; only release works.
    Poisoned = -19,
    /// A defect of squire was caught at the boundary.
    Panic = -20,
}

macro_rules! faults {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal => $status:ident,)+) => {
        /// Every distinguishable fault, with its stable detail code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(i32)]
        pub enum Fault { $($(#[doc = $doc])+ $name = $code,)+ }

        impl Fault {
            /// All faults, in the order of the table.
            pub const ALL: &'static [Fault] = &[$(Fault::$name),+];
            /// The status this fault maps to.
            pub fn status(self) -> Status { match self { $(Fault::$name => Status::$status,)+ } }
            /// The fault's name, as written in the table.
            pub fn name(self) -> &'static str { match self { $(Fault::$name => stringify!($name),)+ } }
        }
    };
}

faults! {
    // An outcome and no error; a code of its own all the same.
    /// The call was cancelled.
    Cancelled = -300 => Cancelled,

    // 1xx: arguments
    /// A pointer that must not be NULL was NULL.
    NullPointer = 101 => Argument,
    /// A length or extent is out of range.
    BadLength = 102 => Argument,
    /// Text that must be UTF-8 is not.
    NotUtf8 = 103 => Argument,
    /// A token id lies outside the vocabulary.
    IdOutOfRange = 104 => Argument,
    /// An option's value is out of range.
    BadOption = 105 => Argument,
    /// A JSON document does not parse.
    BadJson = 106 => Argument,
    /// A JSON document has a key that is not known.
    UnknownKey = 107 => Argument,
    /// A JSON value has the wrong type or range.
    BadValue = 108 => Argument,
    /// An error out-parameter did not point to NULL.
    ErrorNotNull = 109 => Argument,
    /// Handles that belong to different engines or models were mixed.
    ForeignHandle = 110 => Argument,
    /// A preset or method name is not known.
    UnknownPreset = 111 => Argument,
    /// A pointer is not aligned for what it points to.
    Misaligned = 112 => Argument,
    /// A handle is not, or no longer, an object of the expected kind.
    WrongHandle = 113 => Argument,
    /// The machine has no device of this index.
    NoSuchDevice = 114 => Argument,
    /// No adapter of this name is loaded.
    UnknownAdapter = 115 => Argument,
    /// No revision of this number is kept to go back to.
    UnknownRevision = 116 => Argument,

    // 2xx: state
    /// The call came out of order.
    OutOfOrder = 201 => State,
    /// A call that is not allowed inside a callback.
    InsideCallback = 202 => State,
    /// The object belongs to the process before fork().
    AfterFork = 203 => State,
    /// There is nothing to build an update from.
    NothingToLearn = 204 => State,
    /// The engine has been shut down.
    EngineStopped = 205 => State,
    /// The update was already applied, or a newer one was.
    StaleUpdate = 206 => State,
    /// There is no token to continue from.
    EmptySession = 207 => State,
    /// The run's steps are all done.
    RunComplete = 210 => State,
    /// No teacher's request of this number waits for an answer.
    TeacherRequest = 211 => State,

    // 3xx: busy
    /// The session is being worked on.
    SessionBusy = 301 => Busy,
    /// The distiller is building an update.
    DistillerBusy = 302 => Busy,
    /// Another distiller writes into the run's folder.
    RecordInUse = 303 => Busy,

    // 4xx: ABI
    /// `struct_size` is too small, too large with a non-zero tail, or not a multiple of 8.
    StructSize = 401 => Abi,
    /// The header's ABI major differs from the library's.
    AbiMajor = 402 => Abi,

    // 5xx: unsupported
    /// `model_type` or architecture is not served.
    UnsupportedArchitecture = 501 => Unsupported,
    /// The rope type is not implemented.
    UnsupportedRope = 502 => Unsupported,
    /// Sliding-window attention is asked for.
    UnsupportedSlidingWindow = 503 => Unsupported,
    /// Attention bias is asked for.
    UnsupportedBias = 504 => Unsupported,
    /// The activation function is not implemented.
    UnsupportedActivation = 505 => Unsupported,
    /// The weight dtype is not implemented.
    UnsupportedDtype = 506 => Unsupported,
    /// The tokenizer uses a part that squire lacks.
    UnsupportedTokenizer = 507 => Unsupported,
    /// This build has no such backend.
    UnsupportedBackend = 508 => Unsupported,
    /// This machine has no such kernel set.
    UnsupportedKernelSet = 509 => Unsupported,
    /// A knob combination that no trainer here implements.
    UnsupportedMethod = 510 => Unsupported,
    /// A quantisation entry in config.json.
    UnsupportedQuantisation = 511 => Unsupported,
    /// This machine has no driver, too old a driver, or no usable device.
    NoDevice = 512 => Unsupported,
    /// This build has no kernels for the device or for the model's extents.
    NoKernels = 513 => Unsupported,
    /// A kind of adapter that squire does not compute.
    UnsupportedAdapter = 514 => Unsupported,
    /// The platform has no descriptor for a queue, or none is left.
    NoDescriptor = 515 => Unsupported,

    // 6xx: io
    /// A file could not be opened.
    CannotOpen = 601 => Io,
    /// A file could not be read.
    CannotRead = 602 => Io,
    /// A file could not be written, synced or renamed.
    CannotWrite = 603 => Io,
    /// A file could not be mapped.
    CannotMap = 604 => Io,
    /// The folder lacks a file that must be there.
    MissingFile = 605 => Io,
    /// The path leads to something else than a folder with a model in it.
    NotAModel = 606 => Io,

    // 7xx: format
    /// The safetensors header's length does not fit the file.
    SafetensorsHeaderLength = 701 => Format,
    /// The safetensors header is not valid JSON of the right form.
    SafetensorsHeader = 702 => Format,
    /// A tensor's offsets lie outside the file or run backwards.
    SafetensorsOffsets = 703 => Format,
    /// Tensors overlap or leave holes.
    SafetensorsOverlap = 704 => Format,
    /// A tensor's shape overflows or does not match its byte count.
    SafetensorsShape = 705 => Format,
    /// A tensor's dtype is not known.
    SafetensorsDtype = 706 => Format,
    /// A name occurs twice.
    SafetensorsDuplicate = 707 => Format,
    /// The shard index is not of the right form.
    IndexForm = 708 => Format,
    /// The shard index names a file outside the folder.
    IndexPath = 709 => Format,
    /// The shard index names a tensor that its shard lacks.
    IndexTensor = 710 => Format,
    /// config.json is not valid JSON or lacks a field.
    ConfigForm = 711 => Format,
    /// config.json contradicts itself.
    ConfigContradiction = 712 => Format,
    /// tokenizer.json is broken.
    TokenizerForm = 713 => Format,
    /// The chat template does not compile.
    TemplateForm = 714 => Format,
    /// A checkpoint is incomplete or broken.
    CheckpointForm = 715 => Format,
    /// generation_config.json is broken.
    GenerationConfigForm = 716 => Format,
    /// tokenizer_config.json is broken.
    TokenizerConfigForm = 717 => Format,
    /// A file holds something else than its content: a Git LFS pointer, a web page, nothing.
    NotTheContent = 718 => Format,
    /// Two tensors' names are one, or two models', once the prefixes of wrappers are taken off.
    TensorNames = 719 => Format,
    /// An adapter's configuration is broken or says what cannot be.
    AdapterForm = 720 => Format,
    /// A run's record or metrics are broken, or are none.
    RecordForm = 721 => Format,
    /// A run's record is of a later form.
    RecordVersion = 722 => Format,

    // 8xx: mismatch
    /// A tensor that the configuration asks for is missing.
    TensorMissing = 801 => Mismatch,
    /// A tensor that the configuration does not know.
    TensorExtra = 802 => Mismatch,
    /// A tensor's shape differs from the configuration's.
    TensorShape = 803 => Mismatch,
    /// Tensors that must share a dtype do not. Not told any more: each tensor has its own dtype.
    TensorDtype = 804 => Mismatch,
    /// The tokenizer has ids beyond the model's vocabulary.
    VocabularySize = 805 => Mismatch,
    /// Teacher and student do not share one vocabulary.
    TeacherVocabulary = 806 => Mismatch,
    /// A checkpoint belongs to another model or configuration.
    CheckpointMismatch = 807 => Mismatch,
    /// The folder holds an adapter that is not merged into its base model.
    UnmergedAdapter = 808 => Mismatch,
    /// An adapter belongs to another base, or has another rank or other targets than are wanted.
    AdapterMismatch = 809 => Mismatch,
    /// An answer does not fit the teacher's request.
    TeacherReply = 810 => Mismatch,
    /// A record is of another run or another vocabulary.
    RecordMismatch = 811 => Mismatch,

    // 9xx to 19xx: one block a status
    /// A buffer could not be allocated.
    OutOfHostMemory = 901 => HostMemory,
    /// Device memory could not be had.
    OutOfDeviceMemory = 1001 => DeviceMemory,
    /// The KV budget is used up.
    KvBudget = 1101 => Budget,
    /// The plan does not fit the host budget.
    HostBudget = 1102 => Budget,
    /// Too many sessions.
    SessionBudget = 1103 => Budget,
    /// The device budget is used up, or the plan does not fit it.
    DeviceBudget = 1104 => Budget,
    /// The session's context has no room.
    ContextFull = 1201 => ContextFull,
    /// The chat template raised an error or produced no text.
    TemplateFailed = 1401 => Template,
    /// The model folder has no chat template.
    NoTemplate = 1402 => Template,
    /// The device or its driver reported an error.
    DeviceError = 1501 => Device,
    /// The device is gone for this process; release the engine.
    DeviceLost = 1601 => DeviceLost,
    /// The teacher failed.
    TeacherFailed = 1701 => Teacher,
    /// The host's teacher did not answer in time.
    TeacherSilent = 1702 => Teacher,
    /// The host closed its teacher.
    TeacherClosed = 1703 => Teacher,
    /// The loss, a gradient, or the logits of a row are not finite.
    NotFinite = 1801 => Diverged,
    /// An applied update moved the student further than the settings let be published.
    UpdateTooFar = 1810 => Diverged,
    /// The object was poisoned by an earlier panic.
    Poisoned = 1901 => Poisoned,
    /// A panic was caught.
    Panic = 2001 => Panic,
}

/// An error: a [`Fault`], a message, and where it matters the bytes needed and free.
pub struct Error(Box<Inner>);

struct Inner {
    fault: Fault,
    message: String,
    /// (needed, free) bytes for memory and budget faults.
    bytes: Option<(u64, u64)>,
    /// The messages before each context was put in front, innermost first.
    causes: Vec<String>,
}

/// The longest message, in bytes; what is put in front of it by [`Error::within`] comes on top.
const LONGEST: usize = 600;
/// The longest context: a path of the host's, which may have 4,096 bytes.
const LONGEST_CONTEXT: usize = 4_200;
/// How much of a value stands in a message, in bytes.
const LONGEST_VALUE: usize = 100;

/// A value as a message shows it: a file's or a host's, which may be of any length, is cut.
pub fn brief(value: impl fmt::Display) -> String {
    struct Cut {
        text: String,
        whole: bool,
    }
    impl fmt::Write for Cut {
        fn write_str(&mut self, part: &str) -> fmt::Result {
            let room = LONGEST_VALUE - self.text.len();
            if part.len() <= room {
                self.text.push_str(part);
                return Ok(());
            }
            self.text.push_str(&part[..part.floor_char_boundary(room)]);
            self.whole = false;
            Err(fmt::Error) // nothing more of the value is written
        }
    }
    let mut cut = Cut { text: String::new(), whole: true };
    let _ = fmt::Write::write_fmt(&mut cut, format_args!("{value}"));
    if !cut.whole {
        cut.text.push('…');
    }
    cut.text
}

/// A message of at most `longest` bytes: what is longer loses its middle.
fn shortened(text: String, longest: usize) -> String {
    if text.len() <= longest {
        return text;
    }
    let (head, tail) = (text.floor_char_boundary(longest * 2 / 3), text.ceil_char_boundary(text.len() - longest / 4));
    format!("{} … {}", &text[..head], &text[tail..])
}

/// The crate's result type.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with its message: lower case, names the object, wanted and found. A message of more than a few hundred
    /// bytes loses its middle: what files say may be of any length.
    pub fn new(fault: Fault, message: impl Into<String>) -> Error {
        let message = shortened(message.into(), LONGEST);
        Error(Box::new(Inner { fault, message, bytes: None, causes: Vec::new() }))
    }

    /// The same for a memory or budget fault, with the bytes needed and the bytes free.
    pub fn memory(fault: Fault, needed: u64, free: u64, message: impl Into<String>) -> Error {
        let message = shortened(message.into(), LONGEST);
        Error(Box::new(Inner { fault, message, bytes: Some((needed, free)), causes: Vec::new() }))
    }

    /// The same error for one more who must be told.
    pub fn again(&self) -> Error {
        let Inner { fault, message, bytes, causes } = &*self.0;
        Error(Box::new(Inner { fault: *fault, message: message.clone(), bytes: *bytes, causes: causes.clone() }))
    }

    /// Puts `context: ` in front of the message.
    pub fn within(mut self, context: impl fmt::Display) -> Error {
        let context = shortened(context.to_string(), LONGEST_CONTEXT);
        let message = format!("{context}: {}", self.0.message);
        self.0.causes.push(std::mem::replace(&mut self.0.message, message));
        self
    }

    /// The fault.
    pub fn fault(&self) -> Fault {
        self.0.fault
    }

    /// The status the fault maps to.
    pub fn status(&self) -> Status {
        self.0.fault.status()
    }

    /// The message.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The messages this error had before each context, nearest first.
    pub fn causes(&self) -> impl Iterator<Item = &str> {
        self.0.causes.iter().rev().map(String::as_str)
    }

    /// (needed, free) bytes, for memory and budget faults.
    pub fn bytes(&self) -> Option<(u64, u64)> {
        self.0.bytes
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({}): {}", self.0.fault, self.0.fault as i32, self.0.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detail_codes_are_unique_and_lie_in_their_status_block() {
        let mut seen = std::collections::HashSet::new();
        for &fault in Fault::ALL {
            assert!(seen.insert(fault as i32), "{fault:?} reuses a code");
            assert_eq!(fault as i32 / 100, -(fault.status() as i32), "{fault:?} stands in the wrong block");
        }
    }

    #[test]
    fn a_message_is_short_whatever_is_put_into_it() {
        let long = "é".repeat(1 << 20);
        let e = Error::new(Fault::BadJson, format!("first {long} last"));
        assert!(e.message().len() <= LONGEST && e.message().starts_with("first é") && e.message().ends_with("é last"));
        let path = "/p".repeat(2_000);
        assert!(e.within(&path).message().starts_with(&format!("{path}: first")), "a path is the host's");
        assert!(Error::new(Fault::BadJson, "x").within(&long).message().len() <= LONGEST_CONTEXT + 3);
        assert_eq!(brief("as it is"), "as it is");
        let cut = brief(format_args!("{long:?}"));
        assert!(cut.len() <= LONGEST_VALUE + 3 && cut.starts_with("\"é") && cut.ends_with("é…"), "{cut}");
    }

    #[test]
    fn context_is_put_in_front() {
        let e = Error::new(Fault::CannotOpen, "no such file").within("model.safetensors");
        assert_eq!(e.to_string(), "model.safetensors: no such file");
        assert_eq!(e.status(), Status::Io);
        assert_eq!(e.causes().collect::<Vec<_>>(), ["no such file"]);
    }
}
