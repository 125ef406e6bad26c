//! A buffer between two units, of every picture: in memory, or in a file.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use super::network::Tape;

/// As many values of each picture.
pub(super) struct Activations(Store);

enum Store {
    /// By picture.
    Memory(Vec<Vec<f32>>),
    /// Without a name in its folder: it is gone with the process, however that ends.
    File { file: Mutex<File>, values: usize },
}

impl Activations {
    /// What there is before the first unit.
    pub(super) fn none() -> Self {
        Activations(Store::Memory(Vec::new()))
    }

    /// What `one` leaves in the buffer that it returns, for each of `count`
    /// pictures; in a file in `scratch`, if there is such a folder.
    ///
    /// # Errors
    /// Of `one`; or the file cannot be made or written.
    pub(super) fn collect(
        count: usize,
        scratch: Option<&Path>,
        tape: impl Fn() -> Tape + Sync + Send,
        one: impl Fn(&mut Tape, usize) -> io::Result<Vec<f32>> + Sync + Send,
    ) -> io::Result<Self> {
        let pictures = (0..count).into_par_iter();
        let Some(folder) = scratch else {
            let all = pictures.map_init(tape, one).collect::<io::Result<_>>()?;
            return Ok(Activations(Store::Memory(all)));
        };
        let file = Mutex::new(tempfile::tempfile_in(folder)?);
        let lengths = pictures.map_init(tape, |tape, picture| {
            let values = one(tape, picture)?;
            let bytes: &[u8] = pulp::bytemuck::cast_slice(&values);
            seek(&file, picture, bytes.len())?.write_all(bytes)?;
            Ok(values.len())
        });
        let lengths = lengths.collect::<io::Result<Vec<usize>>>()?;
        let values = lengths.first().copied().unwrap_or(0);
        assert!(lengths.iter().all(|&l| l == values), "pictures are alike");
        Ok(Activations(Store::File { file, values }))
    }

    /// Those of one picture.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn of(&self, picture: usize) -> io::Result<Cow<'_, [f32]>> {
        match &self.0 {
            Store::Memory(all) => Ok(Cow::Borrowed(&all[picture])),
            Store::File { file, values } => {
                let mut all = vec![0.0f32; *values];
                let bytes: &mut [u8] = pulp::bytemuck::cast_slice_mut(&mut all);
                seek(file, picture, bytes.len())?.read_exact(bytes)?;
                Ok(Cow::Owned(all))
            }
        }
    }
}

/// The file, where the bytes of `picture` are.
fn seek(file: &Mutex<File>, picture: usize, bytes: usize) -> io::Result<MutexGuard<'_, File>> {
    let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
    file.seek(SeekFrom::Start(picture as u64 * bytes as u64))?;
    Ok(file)
}
