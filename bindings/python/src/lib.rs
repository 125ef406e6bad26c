//! The Python module `tpvit`: one class, documented in `python/tpvit/__init__.pyi`.
//!
//! ```text
//! numpy uint8 [n, h, w, 3] ─ borrowed if C-contiguous ▶ Session::run, lock released ─ moved ▶ numpy float32
//! ```

use std::io::ErrorKind;
use std::iter;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use numpy::{
    IntoPyArray, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArray,
    PyUntypedArrayMethods,
};
use pyo3::exceptions::{
    PyFileNotFoundError, PyIsADirectoryError, PyOSError, PyPermissionError, PyTypeError,
    PyValueError,
};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tpvit_bindings::{Error, Fault, SharedModel, chain};
use tpvit_models::{Interpolation, Resize};
use tpvit_runtime::{Options, Session, softmax};

/// A `.tpv` file, ready to run.
#[pyclass(frozen, module = "tpvit")]
struct Model {
    model: SharedModel,
    /// Taken and given back without the interpreter's lock, so that no thread
    /// holds one and waits for the other.
    session: Mutex<Session<'static>>,
}

#[pymethods]
impl Model {
    #[new]
    #[pyo3(signature = (source, *, threads = 1, isa = None))]
    fn new(
        py: Python<'_>,
        source: &Bound<'_, PyAny>,
        threads: usize,
        isa: Option<&str>,
    ) -> PyResult<Model> {
        let isa = isa.map(tpvit_bindings::isa).transpose().map_err(raise)?;
        let options = Options {
            isa,
            threads,
            ..Options::default()
        };
        let source = match source.cast::<PyBytes>() {
            Ok(bytes) => Source::Bytes(bytes.as_bytes().to_vec()),
            Err(_) => Source::Path(source.extract()?),
        };
        py.detach(|| {
            let model = match source {
                Source::Bytes(bytes) => SharedModel::from_bytes(bytes)?,
                Source::Path(path) => SharedModel::open(&path)?,
            };
            let session = Mutex::new(model.session(&options)?);
            Ok(Model { model, session })
        })
        .map_err(raise)
    }

    /// The result of one picture, or of each of a batch.
    fn run<'py>(
        &self,
        py: Python<'py>,
        pixels: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let pixels = uint8_array(pixels)?;
        let shape = pixels.shape();
        let [height, width] = self.model.image_size();
        let pictures = match shape {
            [h, w, 3] if [*h, *w] == [height, width] => None,
            [n, h, w, 3] if [*h, *w] == [height, width] => Some(*n),
            _ => {
                return Err(PyValueError::new_err(format!(
                    "pixels has shape {shape:?}, the model takes \
                     [{height}, {width}, 3] or [n, {height}, {width}, 3]"
                )));
            }
        };
        let dims: Vec<usize> = pictures.into_iter().chain(self.output_dims()).collect();
        let floats = with_slice(&pixels, |pixels| self.run_all(py, pixels))?;
        floats.into_pyarray(py).reshape(dims)
    }

    /// The likeliest classes of one picture, with probabilities.
    #[pyo3(signature = (pixels, top = 5))]
    fn classify<'py>(
        &self,
        py: Python<'py>,
        pixels: &Bound<'py, PyAny>,
        top: usize,
    ) -> PyResult<Vec<(String, f32)>> {
        if self.model.classes().is_none() {
            let text = "this model gives features, which name no class; use run";
            return Err(PyValueError::new_err(text));
        }
        let logits = self.run(py, pixels)?;
        if logits.ndim() != 1 {
            let text = "classify takes one picture; use run for a batch";
            return Err(PyValueError::new_err(text));
        }
        let mut probabilities = logits.to_vec()?;
        softmax(&mut probabilities);
        let mut ranked: Vec<(usize, f32)> = probabilities.into_iter().enumerate().collect();
        // Stable: of equal classes the first comes first.
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        ranked.truncate(top);
        let labels = self.model.labels();
        let label = |class: usize| match labels.get(class) {
            Some(label) => label.clone(),
            None => format!("class {class}"),
        };
        let named = ranked.into_iter().map(|(class, p)| (label(class), p));
        Ok(named.collect())
    }

    /// Height and width of a picture in pixels.
    #[getter]
    fn image_size(&self) -> (usize, usize) {
        self.model.image_size().into()
    }

    /// Of one picture.
    #[getter]
    fn output_shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, pyo3::types::PyTuple>> {
        pyo3::types::PyTuple::new(py, self.output_dims())
    }

    /// The number of classes, if the result is logits.
    #[getter]
    fn classes(&self) -> Option<usize> {
        self.model.classes()
    }

    /// One for each class, or none.
    #[getter]
    fn labels(&self) -> &[String] {
        self.model.labels()
    }

    /// What the shorter side is resized to; `None` squashes.
    #[getter]
    fn resize(&self) -> Option<u32> {
        match self.model.preprocess().resize {
            Resize::ShorterSide(pixels) => Some(pixels),
            Resize::Squash => None,
        }
    }

    /// The filter of that resize.
    #[getter]
    fn interpolation(&self) -> &'static str {
        match self.model.preprocess().interpolation {
            Interpolation::Bicubic => "bicubic",
            Interpolation::Bilinear => "bilinear",
        }
    }

    /// The instruction set in use.
    #[getter]
    fn isa(&self, py: Python<'_>) -> &'static str {
        self.with_session(py, |session| session.isa().name())
    }

    /// The number of threads in use.
    #[getter]
    fn threads(&self, py: Python<'_>) -> usize {
        self.with_session(py, |session| session.threads())
    }

    /// Bytes allocated for weights, constants and runs.
    #[getter]
    fn memory_bytes(&self, py: Python<'_>) -> usize {
        self.with_session(py, |session| session.memory_plan().total_bytes())
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let [height, width] = self.model.image_size();
        let shape: Vec<String> = self.output_dims().map(|d| d.to_string()).collect();
        format!(
            "<tpvit.Model {height} x {width} pixels -> [{}], {}, {} thread(s)>",
            shape.join(", "),
            self.isa(py),
            self.threads(py)
        )
    }
}

impl Model {
    /// A classifier's one row is no axis of the result.
    fn output_dims(&self) -> impl ExactSizeIterator<Item = usize> + use<> {
        let [rows, cols] = self.model.output_shape();
        let skipped = usize::from(self.model.classes().is_some());
        [rows, cols].into_iter().skip(skipped)
    }

    /// The results of all pictures, one after another. Ctrl-C is heard between
    /// two of them.
    fn run_all(&self, py: Python<'_>, pixels: &[u8]) -> PyResult<Vec<f32>> {
        let [height, width] = self.model.image_size();
        let [rows, cols] = self.model.output_shape();
        let picture_len = height * width * 3;
        let mut floats = Vec::with_capacity(pixels.len() / picture_len * rows * cols);
        for picture in pixels.chunks_exact(picture_len) {
            py.check_signals()?;
            self.with_session(py, |session| {
                let result = session.run(picture).map(|result| floats.extend(result));
                result.map_err(|error| PyValueError::new_err(error.to_string()))
            })?;
        }
        Ok(floats)
    }

    fn with_session<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Session<'static>) -> T + Send,
    ) -> T {
        py.detach(|| work(&mut self.session.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

enum Source {
    Bytes(Vec<u8>),
    Path(PathBuf),
}

fn uint8_array<'py>(pixels: &Bound<'py, PyAny>) -> PyResult<PyReadonlyArrayDyn<'py, u8>> {
    let Ok(array) = pixels.cast::<PyUntypedArray>() else {
        let text = format!("pixels is no numpy array but {}", pixels.get_type().name()?);
        return Err(PyTypeError::new_err(text));
    };
    match pixels.cast::<PyArrayDyn<u8>>() {
        Ok(array) => Ok(array.try_readonly()?),
        Err(_) => {
            let text = format!("pixels has dtype {}, the model takes uint8", array.dtype());
            Err(PyTypeError::new_err(text))
        }
    }
}

/// Calls `work` with the elements in C order, copied only if they lie otherwise.
fn with_slice<T>(array: &PyReadonlyArrayDyn<'_, u8>, work: impl FnOnce(&[u8]) -> T) -> T {
    match array.as_slice() {
        // `as_slice` is content with Fortran's order too.
        Ok(slice) if array.is_c_contiguous() => work(slice),
        Ok(_) | Err(_) => work(&array.as_array().iter().copied().collect::<Vec<u8>>()),
    }
}

/// The exception that says the same.
fn raise(error: Error) -> PyErr {
    let text = chain(&error);
    match error.fault() {
        Fault::Argument | Fault::Model | Fault::Machine => PyValueError::new_err(text),
        Fault::Io => match io_kind(&error) {
            Some(ErrorKind::NotFound) => PyFileNotFoundError::new_err(text),
            Some(ErrorKind::PermissionDenied) => PyPermissionError::new_err(text),
            Some(ErrorKind::IsADirectory) => PyIsADirectoryError::new_err(text),
            _ => PyOSError::new_err(text),
        },
    }
}

fn io_kind(error: &Error) -> Option<ErrorKind> {
    let mut causes = iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.find_map(|cause| Some(cause.downcast_ref::<std::io::Error>()?.kind()))
}

#[pymodule]
fn _tpvit(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<Model>()
}
