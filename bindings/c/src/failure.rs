//! What a call says when it fails: a code, and a text kept for its thread.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tpvit_bindings::{Error, Fault, chain};
use tpvit_runtime::RunError;

/// What a call returns. Codes keep their numbers in all versions.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It did what it is for.
    Ok = 0,
    /// An argument that no call can have: a NULL, a name that does not exist,
    /// a number out of range.
    Argument = 1,
    /// A buffer has the wrong length; the text says which and what is needed.
    Length = 2,
    /// The system does not give the file's bytes.
    Io = 3,
    /// The file holds no model that can be run.
    Model = 4,
    /// This machine lacks the instruction set, or does not start the threads.
    Machine = 5,
    /// A mistake of this library, caught before it reached the caller. Free the
    /// objects of the call; all others stay usable.
    Internal = 6,
}

/// A [`Status`] that is not `Ok`, and why.
pub(crate) struct Failure {
    status: Status,
    text: String,
}

impl Failure {
    pub(crate) fn argument(text: String) -> Failure {
        let status = Status::Argument;
        Failure { status, text }
    }

    pub(crate) fn length(text: String) -> Failure {
        let status = Status::Length;
        Failure { status, text }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let status = match error.fault() {
            Fault::Argument => Status::Argument,
            Fault::Io => Status::Io,
            Fault::Model => Status::Model,
            Fault::Machine => Status::Machine,
        };
        let text = chain(&error);
        Failure { status, text }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Failure {
        Failure::length(error.to_string())
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// The text of the last failure of this thread; empty if there was none, or if
/// the thread is ending.
///
/// Valid until the next failure of this thread, or its end.
pub(crate) fn last_error() -> *const c_char {
    const NONE: &CStr = c"";
    LAST.try_with(|last| last.borrow().as_ptr())
        .unwrap_or(NONE.as_ptr())
}

fn remember(text: String) {
    // A path may hold anything but NUL, and C ends a text there.
    let text = CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default();
    // A thread that is ending has nobody to ask for the text.
    let _ = LAST.try_with(|last| last.replace(text));
}

/// Does `work`; what goes wrong, a panic too, becomes a code and a text.
pub(crate) fn guard(work: impl FnOnce() -> Result<(), Failure>) -> Status {
    // What a panic may leave half done is in the caller's objects, and C has
    // no way to know: the header says to free them.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => Status::Ok,
        Ok(Err(Failure { status, text })) => {
            remember(text);
            status
        }
        Err(payload) => {
            remember(format!("internal error: {}", message(&*payload)));
            Status::Internal
        }
    }
}

fn message(payload: &(dyn Any + Send)) -> &str {
    match (payload.downcast_ref::<String>(), payload.downcast_ref()) {
        (Some(text), _) => text,
        (None, Some(&text)) => text,
        (None, None) => "a panic without a message",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> String {
        LAST.with(|last| last.borrow().to_str().unwrap().to_owned())
    }

    #[test]
    fn a_panic_becomes_a_code_and_a_text() {
        assert_eq!(guard(|| panic!("a fixed text")), Status::Internal);
        assert_eq!(text(), "internal error: a fixed text");
        let number = 7;
        assert_eq!(guard(|| panic!("number {number}")), Status::Internal);
        assert_eq!(text(), "internal error: number 7");
    }

    #[test]
    fn a_text_stays_until_the_next_failure_of_its_thread() {
        let fail = |text: &str| guard(|| Err(Failure::length(text.to_owned())));
        assert_eq!(text(), "");
        assert_eq!(fail("first"), Status::Length);
        assert_eq!(guard(|| Ok(())), Status::Ok);
        assert_eq!(text(), "first");
        std::thread::spawn(move || assert_eq!(text(), ""))
            .join()
            .unwrap();
        assert_eq!(fail("a\0b"), Status::Length);
        assert_eq!(text(), "a\u{fffd}b");
    }
}
