//! Every function of `tpvit.h`, and all of this crate's `unsafe`.
//!
//! Pointers become references, slices or `NULL` errors in the helpers at the
//! end of the file and nowhere else; each function then is safe code inside
//! [`guard`]. The documentation here is the header's.

use std::ffi::{CStr, CString, c_char};
use std::path::Path;
use std::ptr;
use std::slice;

use tpvit_bindings::SharedModel;
use tpvit_models::{Interpolation, Resize};
use tpvit_runtime::{Options, softmax};

use crate::failure::{Failure, Status, guard, last_error};

/// A model file, read and checked but for its tensors. It never changes: any
/// number of threads may use it at once.
pub struct Model {
    shared: SharedModel,
    labels: Vec<CString>,
}

/// A model ready to run, with weights and memory of its own. One thread at a
/// time may use it; which one does not matter.
pub struct Session {
    session: tpvit_runtime::Session<'static>,
    isa: CString,
}

// What the two comments above promise.
const fn shared<T: Send + Sync>() {}
const fn handed_over<T: Send>() {}
const _: () = {
    shared::<Model>();
    handed_over::<Session>();
};

/// The version of the library, as "1.2.3". Valid for ever.
#[unsafe(no_mangle)]
pub extern "C" fn tpvit_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => panic!("a version holds no NUL"),
        };
    VERSION.as_ptr()
}

/// Why the last call of this thread that failed did so: one line of UTF-8
/// without a full stop, empty if none has failed. Never NULL. A call that
/// succeeds leaves it as it is. Valid until the next call of this thread that
/// fails, or the thread's end.
#[unsafe(no_mangle)]
pub extern "C" fn tpvit_last_error() -> *const c_char {
    last_error()
}

/// Opens the file at `path` and reads and checks all but its tensors, which
/// tpvit_session_new reads one at a time. The file stays open until the model
/// is freed.
///
/// path: a text that ends with NUL, read during the call. On Windows UTF-8.
///
/// model: receives the model, to be freed with tpvit_model_free, or NULL if
/// the call fails.
///
/// Fails with TPVIT_STATUS_ARGUMENT, TPVIT_STATUS_IO or TPVIT_STATUS_MODEL.
///
/// # Safety
/// The pointers are what is said above, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tpvit_model_open(path: *const c_char, model: *mut *mut Model) -> Status {
    guard(|| {
        // SAFETY: the caller's promise for `model`.
        let slot = unsafe { slot(model, "model") }?;
        // SAFETY: the caller's promise for `path`.
        let path = unsafe { text(path, "path") }?;
        *slot = give(Model::new(SharedModel::open(to_path(path)?)?));
        Ok(())
    })
}

/// Makes a model of the bytes of a file, which are copied. Reads and checks all
/// but the tensors, which tpvit_session_new does.
///
/// bytes: `len` bytes, read during the call. They need no alignment.
///
/// model: receives the model, to be freed with tpvit_model_free, or NULL if
/// the call fails.
///
/// Fails with TPVIT_STATUS_ARGUMENT or TPVIT_STATUS_MODEL.
///
/// # Safety
/// The pointers are what is said above, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tpvit_model_from_memory(
    bytes: *const u8,
    len: usize,
    model: *mut *mut Model,
) -> Status {
    guard(|| {
        // SAFETY: the caller's promise for `model`.
        let slot = unsafe { slot(model, "model") }?;
        // SAFETY: the caller's promise for `bytes`.
        let bytes = unsafe { slice(bytes, len, "bytes") }?;
        *slot = give(Model::new(SharedModel::from_bytes(bytes.to_vec())?));
        Ok(())
    })
}

/// Frees a model. Its sessions stay usable; its labels do not. NULL is allowed.
///
/// # Safety
/// `model` came from this library, was not freed before, and no other thread
/// is using it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tpvit_model_free(model: *mut Model) {
    // SAFETY: the caller's promise.
    unsafe { take_back(model) }
}

/// Height of the picture in pixels; 0 if `model` is NULL.
///
/// # Safety
/// `model` is a model that was not freed, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tpvit_model_height(model: *const Model) -> usize {
    // SAFETY: the caller's promise.
    let model = unsafe { model.as_ref() };
    model.map_or(0, |model| model.shared.image_size()[0])
}

/// Width of the picture in pixels; 0 if `model` is NULL.
///
/// # Safety
/// `model` is a model that was not freed, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tpvit_model_width(model: *const Model) -> usize {
    // SAFETY: the caller's promise.
    let model = unsafe { model.as_ref() };
    model.map_or(0, |model| model.shared.image_size()[1])
}

/// How many pixels the shorter side of a picture is resized to, before the
/// model's height and width are cropped from its centre. 0 if the whole picture
/// is resized to the model's height and width instead, or `model` is NULL.
///
/// # Safety
/// `model` is a model that was not freed, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tpvit_model_shorter_side(model: *const Model) -> usize {
    // SAFETY: the caller's promise.
    let model = unsafe { model.as_ref() };
    model.map_or(0, |model| match model.shared.preprocess().resize {
        Resize::ShorterSide(pixels) => pixels as usize,
        Resize::Squash => 0,
    })
}

/// The filter of that resize, antialiased as Pillow's: "bicubic" or "bilinear".
/// NULL if `model` is NULL. Valid for ever.
///
/// # Safety
/// `model` is a model that was not freed, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tpvit_model_interpolation(model: *const Model) -> *const c_char {
    // SAFETY: the caller's promise.
    let model = unsafe { model.as_ref() };
    let name = model.map(|model| match model.shared.preprocess().interpolation {
        Interpolation::Bicubic => c"bicubic",
        Interpolation::Bilinear => c"bilinear",
    });
    name.map_or(ptr::null(), CStr::as_ptr)
}

/// Rows of the result: 1 of a classifier, else the tokens of the features.
/// 0 if `model` is NULL.
///
/// # Safety
/// `model` is a model that was not freed, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tpvit_model_output_rows(model: *const Model) -> usize {
    // SAFETY: the caller's promise.
    let model = unsafe { model.as_ref() };
    model.map_or(0, |model| model.shared.output_shape()[0])
}

/// Columns of the result: the classes, or the channels of the features. 0 if
/// `model` is NULL.
///
/// # Safety
/// `model` is a model that was not freed, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tpvit_model_output_cols(model: *const Model) -> usize {
    // SAFETY: the caller's promise.
    let model = unsafe { model.as_ref() };
    model.map_or(0, |model| model.shared.output_shape()[1])
}

/// The number of classes; 0 of a model whose result is features, or if `model`
/// is NULL.
///
/// # Safety
/// `model` is a model that was not freed, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tpvit_model_classes(model: *const Model) -> usize {
    // SAFETY: the caller's promise.
    let model = unsafe { model.as_ref() };
    model.and_then(|model| model.shared.classes()).unwrap_or(0)
}

/// What class `number` is called, UTF-8. NULL if the file has no labels,
/// there is no such class, or `model` is NULL. Valid until the model is freed.
///
/// # Safety
/// `model` is a model that was not freed, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tpvit_model_label(model: *const Model, number: usize) -> *const c_char {
    // SAFETY: the caller's promise.
    let model = unsafe { model.as_ref() };
    let label = model.and_then(|model| model.labels.get(number));
    label.map_or(ptr::null(), |label| label.as_ptr())
}

/// Reads and checks the tensors, and makes the model ready to run: weights in
/// the order of the instruction set, and all memory that runs need.
///
/// model: used during the call only. Several threads may make sessions of one
/// model at once.
///
/// threads: 1 to 1024. All but the caller's wait between pictures and end with
/// the session.
///
/// isa: NULL takes the best instruction set of this CPU. Otherwise a text that
/// ends with NUL, read during the call: "portable", "avx2", "avxvnni",
/// "avx512vnni", "neon", "dotprod" or "i8mm". The result has the same bits with
/// each, and with any number of threads.
///
/// session: receives the session, to be freed with tpvit_session_free, or NULL
/// if the call fails.
///
/// Fails with TPVIT_STATUS_ARGUMENT, TPVIT_STATUS_IO, TPVIT_STATUS_MODEL or
/// TPVIT_STATUS_MACHINE.
///
/// # Safety
/// The pointers are what is said above, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tpvit_session_new(
    model: *const Model,
    threads: usize,
    isa: *const c_char,
    session: *mut *mut Session,
) -> Status {
    guard(|| {
        // SAFETY: the caller's promise for `session`.
        let slot = unsafe { slot(session, "session") }?;
        // SAFETY: the caller's promise for `model`.
        let model = unsafe { model.as_ref() }.ok_or_else(|| null("model"))?;
        let isa = if isa.is_null() {
            None
        } else {
            // SAFETY: the caller's promise for `isa`.
            let name = unsafe { text(isa, "isa") }?;
            Some(tpvit_bindings::isa(&name.to_string_lossy())?)
        };
        let options = Options {
            isa,
            threads,
            ..Options::default()
        };
        let session = model.shared.session(&options)?;
        let isa = CString::new(session.isa().name()).expect("a name holds no NUL");
        *slot = give(Session { session, isa });
        Ok(())
    })
}

/// Ends a session's threads and frees it. NULL is allowed.
///
/// # Safety
/// `session` came from this library, was not freed before, and no other thread
/// is using it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tpvit_session_free(session: *mut Session) {
    // SAFETY: the caller's promise.
    unsafe { take_back(session) }
}

/// The instruction set in use. NULL if `session` is NULL. Valid until the
/// session is freed.
///
/// # Safety
/// `session` is a session that was not freed, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tpvit_session_isa(session: *const Session) -> *const c_char {
    // SAFETY: the caller's promise.
    let session = unsafe { session.as_ref() };
    session.map_or(ptr::null(), |session| session.isa.as_ptr())
}

/// Bytes that the session has allocated for weights, constants and runs. 0 if
/// `session` is NULL.
///
/// # Safety
/// `session` is a session that was not freed, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tpvit_session_bytes(session: *const Session) -> usize {
    // SAFETY: the caller's promise.
    let session = unsafe { session.as_ref() };
    session.map_or(0, |session| session.session.memory_plan().total_bytes())
}

/// Runs the model on one picture.
///
/// pixels: `pixels_len` bytes, exactly height * width * 3, read during the
/// call: row after row, each pixel red, green, blue.
///
/// output: room for `output_len` floats, at least rows * cols of the result,
/// which is written row after row: a classifier's logits, one for each class.
/// What lies beyond is left as it is. If the call fails nothing is written.
///
/// Fails with TPVIT_STATUS_ARGUMENT or TPVIT_STATUS_LENGTH.
///
/// # Safety
/// The pointers are what is said above, or NULL; the buffers do not overlap,
/// and no other thread is using the session or writing to them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tpvit_session_run(
    session: *mut Session,
    pixels: *const u8,
    pixels_len: usize,
    output: *mut f32,
    output_len: usize,
) -> Status {
    guard(|| {
        // SAFETY: the caller's promise for `session`.
        let session = unsafe { session.as_mut() }.ok_or_else(|| null("session"))?;
        // SAFETY: the caller's promise for `pixels`.
        let pixels = unsafe { slice(pixels, pixels_len, "pixels") }?;
        check(output, output_len, "output")?;
        let result = session.session.run(pixels)?;
        if output_len < result.len() {
            return Err(Failure::length(format!(
                "output has room for {output_len} floats, the result has {}",
                result.len()
            )));
        }
        // SAFETY: `output` was checked, has room for that many floats, and is
        // not the session's memory, which the caller knows no address of.
        unsafe { ptr::copy_nonoverlapping(result.as_ptr(), output, result.len()) };
        Ok(())
    })
}

/// Turns logits into probabilities, in place: exp(x) / sum of exp, of `len`
/// floats. They must be numbers; others give values without a meaning.
///
/// Fails with TPVIT_STATUS_ARGUMENT.
///
/// # Safety
/// `logits` points to `len` floats that no other thread is using, or is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tpvit_softmax(logits: *mut f32, len: usize) -> Status {
    guard(|| {
        check(logits, len, "logits")?;
        // SAFETY: checked, and the caller's promise.
        softmax(unsafe { slice::from_raw_parts_mut(logits, len) });
        Ok(())
    })
}

impl Model {
    fn new(shared: SharedModel) -> Model {
        let label = |label: &String| {
            // The format allows no control characters.
            CString::new(label.as_str()).expect("a label holds no NUL")
        };
        Model {
            labels: shared.labels().iter().map(label).collect(),
            shared,
        }
    }
}

fn null(name: &str) -> Failure {
    Failure::argument(format!("{name} is NULL"))
}

/// A pointer that no slice can begin at, whatever it points to.
fn check<T>(pointer: *const T, len: usize, name: &str) -> Result<(), Failure> {
    if pointer.is_null() {
        return Err(null(name));
    }
    if !pointer.is_aligned() {
        let needed = align_of::<T>();
        let text = format!("{name} is at {pointer:p}, which is no multiple of {needed}");
        return Err(Failure::argument(text));
    }
    let limit = isize::MAX as usize / size_of::<T>();
    if len > limit {
        let text = format!("{name} has length {len}, but no memory has room for more than {limit}");
        return Err(Failure::argument(text));
    }
    Ok(())
}

/// # Safety
/// `pointer` is null, or `len` values begin there that nobody changes during `'a`.
unsafe fn slice<'a, T>(pointer: *const T, len: usize, name: &str) -> Result<&'a [T], Failure> {
    check(pointer, len, name)?;
    // SAFETY: not null, aligned, not too long; the rest is the caller's promise.
    Ok(unsafe { slice::from_raw_parts(pointer, len) })
}

/// # Safety
/// `pointer` is null, or a text that ends with NUL begins there and nobody
/// changes it during `'a`.
unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<&'a CStr, Failure> {
    if pointer.is_null() {
        return Err(null(name));
    }
    // SAFETY: not null; the rest is the caller's promise.
    Ok(unsafe { CStr::from_ptr(pointer) })
}

/// Where a result goes; null until there is one.
///
/// # Safety
/// `pointer` is null, or a pointer can be written there, of which nobody else
/// knows during `'a`.
unsafe fn slot<'a, T>(pointer: *mut *mut T, name: &str) -> Result<&'a mut *mut T, Failure> {
    check(pointer, 1, name)?;
    // SAFETY: not null, aligned; the caller's promise. It may not be
    // initialised, so it is written before there is a reference to it.
    unsafe { pointer.write(ptr::null_mut()) };
    // SAFETY: as before, and now initialised.
    Ok(unsafe { &mut *pointer })
}

fn give<T>(value: T) -> *mut T {
    Box::into_raw(Box::new(value))
}

/// # Safety
/// `pointer` is null, or came from [`give`] and is used by nobody from now on.
unsafe fn take_back<T>(pointer: *mut T) {
    if !pointer.is_null() {
        // SAFETY: not null; the rest is the caller's promise.
        let value = unsafe { Box::from_raw(pointer) };
        guard(|| {
            drop(value);
            Ok(())
        });
    }
}

#[cfg(unix)]
fn to_path(text: &CStr) -> Result<&Path, Failure> {
    use std::os::unix::ffi::OsStrExt;
    Ok(Path::new(std::ffi::OsStr::from_bytes(text.to_bytes())))
}

#[cfg(not(unix))]
fn to_path(text: &CStr) -> Result<&Path, Failure> {
    let path = text.to_str().map(Path::new);
    path.map_err(|error| Failure::argument(format!("path is not UTF-8: {error}")))
}
