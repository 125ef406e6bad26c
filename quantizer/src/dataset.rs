//! Folders of pictures: for calibration, and with labels for measuring.
//!
//! A labelled folder is one of
//!
//! - a `labels.csv` with the columns `file` (relative to the folder) and
//!   `label` (class index from 0); other columns are ignored;
//! - one folder per class, the class index being the place of the folder's
//!   name in sorted order, as torchvision's `ImageFolder` has it.
//!
//! Every list comes sorted or in the file's order, so that two runs see the
//! same pictures in the same order.

use std::path::{Path, PathBuf};

use tpvit_models::Preprocess;

use crate::pictures::{PictureError, Pixels, load_many};

/// The labels' file in a folder.
const LABELS_CSV: &str = "labels.csv";

/// Files taken for pictures, by ending, whatever the case.
const ENDINGS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// Folders inside folders are followed this far; more is a loop of links.
const MAX_DEPTH: usize = 8;

/// A folder that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// The operating system refused.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's words.
        source: std::io::Error,
    },
    /// The CSV is malformed.
    #[error("cannot read {}: {source}", path.display())]
    Csv {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: csv::Error,
    },
    /// The CSV's first line lacks a column.
    #[error("{}: no column \"{column}\"; the first line must name the columns file and label", path.display())]
    Column {
        /// The file.
        path: PathBuf,
        /// The column.
        column: &'static str,
    },
    /// A picture of the CSV is not there.
    #[error("{} line {line}: no file {}", csv.display(), picture.display())]
    MissingPicture {
        /// The CSV.
        csv: PathBuf,
        /// Its line, from 1.
        line: u64,
        /// The picture.
        picture: PathBuf,
    },
    /// A label is no class index.
    #[error(
        "{} line {line}: label \"{found}\" is no class index; give a number from 0", csv.display()
    )]
    Label {
        /// The CSV.
        csv: PathBuf,
        /// Its line, from 1.
        line: u64,
        /// The label.
        found: String,
    },
    /// A label beyond the model's classes.
    #[error(
        "picture {} has label {label}, but the model has {classes} classes", picture.display()
    )]
    Classes {
        /// The picture.
        picture: PathBuf,
        /// Its label.
        label: usize,
        /// The model's classes.
        classes: usize,
    },
    /// The order of class folders is ambiguous.
    #[error(
        "{}: class folders are numbers whose sorted order is not the numbers' order \
         (\"10\" before \"9\"); pad them with zeros or write {LABELS_CSV}", dir.display()
    )]
    NumberedFolders {
        /// The folder.
        dir: PathBuf,
    },
    /// No pictures.
    #[error("no pictures (jpg, jpeg, png, webp) in {}", dir.display())]
    Empty {
        /// The folder.
        dir: PathBuf,
    },
    /// Pictures, but no labels.
    #[error(
        "{}: no labels; write {LABELS_CSV} (columns file, label) or sort the pictures into one \
         folder per class", dir.display()
    )]
    NoLabels {
        /// The folder.
        dir: PathBuf,
    },
    /// Too many pictures were broken.
    #[error(
        "only {usable} of {found} pictures can be used, {minimum} are needed; the first broken: {first}"
    )]
    TooFew {
        /// How many loaded.
        usable: usize,
        /// How many there are.
        found: usize,
        /// How many are needed.
        minimum: usize,
        /// The first error, or that there is none.
        first: String,
    },
    /// A file of class names with another number of names.
    #[error("{} names {found} classes, but the model has {classes}", path.display())]
    ClassNames {
        /// The file.
        path: PathBuf,
        /// How many lines it has.
        found: usize,
        /// The model's classes.
        classes: usize,
    },
    /// A class without a name.
    #[error("{} line {line}: empty; give one class name a line", path.display())]
    EmptyName {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
}

/// Pictures without labels, as calibration takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pictures {
    /// The files, sorted by path.
    pub paths: Vec<PathBuf>,
}

/// Pictures in memory, and those that failed.
#[derive(Debug)]
pub struct Loaded {
    /// The good ones, in order.
    pub pixels: Vec<Pixels>,
    /// The broken ones, in order, each named.
    pub skipped: Vec<PictureError>,
}

impl Pictures {
    /// All pictures in `dir` and the folders in it, sorted by path.
    ///
    /// # Errors
    /// If a folder cannot be read or there is no picture.
    pub fn calibration(dir: &Path) -> Result<Self, DatasetError> {
        let paths = pictures_in(dir)?;
        if paths.is_empty() {
            return Err(DatasetError::Empty {
                dir: dir.to_owned(),
            });
        }
        Ok(Self { paths })
    }

    /// At most `n` of them, evenly spread, so that in a folder sorted by class
    /// every class stays.
    #[must_use]
    pub fn spread(self, n: usize) -> Self {
        let len = self.paths.len();
        if n >= len {
            return self;
        }
        let paths = (0..n).map(|i| self.paths[i * len / n].clone()).collect();
        Self { paths }
    }

    /// Loads all, prepared for an input of `size`, `[height, width]`; broken
    /// pictures are skipped and named in [`Loaded::skipped`]. Takes
    /// `3 * height * width` bytes a picture.
    ///
    /// # Errors
    /// [`DatasetError::TooFew`] if fewer than `minimum` load.
    pub fn load(
        &self,
        preprocess: &Preprocess,
        size: [usize; 2],
        minimum: usize,
    ) -> Result<Loaded, DatasetError> {
        let mut loaded = Loaded {
            pixels: Vec::new(),
            skipped: Vec::new(),
        };
        for picture in load_many(&self.paths, preprocess, size) {
            match picture {
                Ok(pixels) => loaded.pixels.push(pixels),
                Err(error) => loaded.skipped.push(error),
            }
        }
        if loaded.pixels.len() < minimum {
            let first = loaded.skipped.first();
            return Err(DatasetError::TooFew {
                usable: loaded.pixels.len(),
                found: self.paths.len(),
                minimum,
                first: first.map_or("none".to_owned(), ToString::to_string),
            });
        }
        Ok(loaded)
    }
}

/// Pictures with their classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// The files, in the order of `labels.csv` or sorted by path.
    pub paths: Vec<PathBuf>,
    /// The class index of each, from 0.
    pub labels: Vec<usize>,
    /// The folders' names in class order; `None` with `labels.csv`.
    pub class_names: Option<Vec<String>>,
}

impl Dataset {
    /// Reads the labels of `dir`: its `labels.csv`, or else its class folders.
    ///
    /// # Errors
    /// If neither is there, or a line or a file of it is wrong.
    pub fn open(dir: &Path) -> Result<Self, DatasetError> {
        let csv = dir.join(LABELS_CSV);
        let dataset = if csv.is_file() {
            Self::from_csv(dir, &csv)?
        } else {
            Self::from_class_folders(dir)?
        };
        if dataset.paths.is_empty() {
            return Err(DatasetError::Empty {
                dir: dir.to_owned(),
            });
        }
        Ok(dataset)
    }

    fn from_csv(dir: &Path, csv: &Path) -> Result<Self, DatasetError> {
        let malformed = |source| DatasetError::Csv {
            path: csv.to_owned(),
            source,
        };
        let mut reader = csv::ReaderBuilder::new()
            .trim(csv::Trim::All)
            .from_path(csv)
            .map_err(malformed)?;
        let headers = reader.headers().map_err(malformed)?;
        let column = |column| {
            let found = headers
                .iter()
                .position(|h| h.trim_start_matches('\u{feff}') == column);
            found.ok_or_else(|| DatasetError::Column {
                path: csv.to_owned(),
                column,
            })
        };
        let (file, label) = (column("file")?, column("label")?);

        let mut dataset = Self {
            paths: Vec::new(),
            labels: Vec::new(),
            class_names: None,
        };
        for record in reader.records() {
            let record = record.map_err(malformed)?;
            let line = record.position().map_or(0, csv::Position::line);
            let picture = dir.join(&record[file]);
            if !picture.is_file() {
                return Err(DatasetError::MissingPicture {
                    csv: csv.to_owned(),
                    line,
                    picture,
                });
            }
            let label = record[label].parse().map_err(|_| DatasetError::Label {
                csv: csv.to_owned(),
                line,
                found: record[label].to_owned(),
            })?;
            dataset.paths.push(picture);
            dataset.labels.push(label);
        }
        Ok(dataset)
    }

    fn from_class_folders(dir: &Path) -> Result<Self, DatasetError> {
        let (files, folders) = entries(dir)?;
        if folders.is_empty() {
            return Err(if files.is_empty() {
                DatasetError::Empty {
                    dir: dir.to_owned(),
                }
            } else {
                DatasetError::NoLabels {
                    dir: dir.to_owned(),
                }
            });
        }
        let names: Vec<String> = folders.iter().map(|f| name_of(f)).collect();
        if !order_is_clear(&names) {
            return Err(DatasetError::NumberedFolders {
                dir: dir.to_owned(),
            });
        }
        let mut dataset = Self {
            paths: Vec::new(),
            labels: Vec::new(),
            class_names: Some(names),
        };
        for (label, folder) in folders.iter().enumerate() {
            let pictures = pictures_in(folder)?;
            dataset
                .labels
                .resize(dataset.labels.len() + pictures.len(), label);
            dataset.paths.extend(pictures);
        }
        Ok(dataset)
    }

    /// Checks every label against a model of `classes` classes.
    ///
    /// # Errors
    /// [`DatasetError::Classes`], naming the first picture that does not fit.
    pub fn check_classes(&self, classes: usize) -> Result<(), DatasetError> {
        match self.labels.iter().position(|&label| label >= classes) {
            None => Ok(()),
            Some(at) => Err(DatasetError::Classes {
                picture: self.paths[at].clone(),
                label: self.labels[at],
                classes,
            }),
        }
    }

    /// Each picture's label with the picture, in order, decoded in parallel
    /// with bounded memory ([`load_many`]); `size` is `[height, width]`.
    pub fn load_many<'a>(
        &'a self,
        preprocess: &'a Preprocess,
        size: [usize; 2],
    ) -> impl Iterator<Item = (usize, Result<Pixels, PictureError>)> + 'a {
        let labels = self.labels.iter().copied();
        labels.zip(load_many(&self.paths, preprocess, size))
    }
}

/// Reads class names, one a line, in index order; blank lines at the end are
/// ignored. With `classes` their number must be that.
///
/// # Errors
/// If the file cannot be read, a line is empty or the number differs.
pub fn read_class_names(path: &Path, classes: Option<usize>) -> Result<Vec<String>, DatasetError> {
    let text = std::fs::read_to_string(path).map_err(|source| DatasetError::Read {
        path: path.to_owned(),
        source,
    })?;
    let text = text.trim_start_matches('\u{feff}').trim_end();
    let names: Vec<String> = text.lines().map(|name| name.trim().to_owned()).collect();
    if let Some(at) = names.iter().position(String::is_empty) {
        return Err(DatasetError::EmptyName {
            path: path.to_owned(),
            line: at + 1,
        });
    }
    match classes {
        Some(classes) if classes != names.len() => Err(DatasetError::ClassNames {
            path: path.to_owned(),
            found: names.len(),
            classes,
        }),
        Some(_) | None => Ok(names),
    }
}

/// All pictures in `dir` and the folders in it, sorted by path.
fn pictures_in(dir: &Path) -> Result<Vec<PathBuf>, DatasetError> {
    let mut found = Vec::new();
    let mut open = vec![(dir.to_owned(), 0)];
    while let Some((dir, depth)) = open.pop() {
        let (files, folders) = entries(&dir)?;
        found.extend(files.into_iter().filter(|file| is_picture(file)));
        if depth < MAX_DEPTH {
            open.extend(folders.into_iter().map(|folder| (folder, depth + 1)));
        }
    }
    found.sort();
    Ok(found)
}

/// The files and the folders in `dir`, each sorted; names that start with a
/// dot are left out.
fn entries(dir: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), DatasetError> {
    let failed = |source| DatasetError::Read {
        path: dir.to_owned(),
        source,
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if !name_of(&path).starts_with('.') {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths.into_iter().partition(|path| !path.is_dir()))
}

fn is_picture(path: &Path) -> bool {
    let ending = path.extension().unwrap_or_default();
    ENDINGS.iter().any(|e| ending.eq_ignore_ascii_case(e))
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Whether sorted `names` are also sorted as numbers, if all are numbers.
fn order_is_clear(names: &[String]) -> bool {
    let numbers: Result<Vec<u64>, _> = names.iter().map(|name| name.parse()).collect();
    numbers.is_err() || numbers.is_ok_and(|numbers| numbers.is_sorted())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tpvit_models::Interpolation;
    use tpvit_models::Resize;

    use super::*;

    const SQUASH: Preprocess = Preprocess {
        resize: Resize::Squash,
        interpolation: Interpolation::Bilinear,
        mean: [0.5; 3],
        std: [0.5; 3],
    };

    /// A folder with these files: pictures by ending, else the given text.
    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("inside")).expect("a folder");
            if text.is_empty() {
                let dot = image::RgbImage::from_pixel(3, 2, image::Rgb([9, 8, 7]));
                dot.save_with_format(&path, image::ImageFormat::Png)
                    .expect("a picture");
            } else {
                fs::write(&path, text).expect("a file");
            }
        }
        dir
    }

    fn names(dir: &tempfile::TempDir, paths: &[PathBuf]) -> Vec<String> {
        let name = |p: &PathBuf| p.strip_prefix(dir).expect("inside").display().to_string();
        paths.iter().map(name).collect()
    }

    #[test]
    fn calibration_pictures_are_sorted_and_filtered() {
        let dir = folder(&[
            ("b.PNG", ""),
            ("a.jpeg", ""),
            ("dog/z.webp", ""),
            ("cat/deep/c.jpg", ""),
            ("labels.csv", "file,label"),
            (".hidden.jpg", ""),
        ]);
        let pictures = Pictures::calibration(dir.path()).expect("pictures");
        assert_eq!(
            names(&dir, &pictures.paths),
            ["a.jpeg", "b.PNG", "cat/deep/c.jpg", "dog/z.webp"]
        );
        assert_eq!(
            names(&dir, &pictures.spread(2).paths),
            ["a.jpeg", "cat/deep/c.jpg"]
        );
    }

    #[test]
    fn an_empty_folder_is_named() {
        let dir = folder(&[("notes.txt", "x")]);
        let error = Pictures::calibration(dir.path())
            .expect_err("empty")
            .to_string();
        assert!(error.starts_with("no pictures"), "{error}");
        let error = Pictures::calibration(Path::new("/no/such")).expect_err("missing");
        assert!(error.to_string().contains("/no/such"), "{error}");
    }

    #[test]
    fn broken_pictures_are_skipped_and_named() {
        let dir = folder(&[("a.png", ""), ("b.png", "not a picture"), ("c.png", "")]);
        let pictures = Pictures::calibration(dir.path()).expect("pictures");
        let loaded = pictures.load(&SQUASH, [4, 4], 2).expect("two remain");
        assert_eq!(loaded.pixels.len(), 2);
        assert!(loaded.skipped[0].to_string().contains("b.png"));
        let error = pictures
            .load(&SQUASH, [4, 4], 3)
            .expect_err("too few")
            .to_string();
        assert!(
            error.contains("only 2 of 3") && error.contains("b.png"),
            "{error}"
        );
    }

    #[test]
    fn csv_columns_are_found_by_name() {
        let dir = folder(&[
            (
                "labels.csv",
                "\u{feff}label,author,file\n3,\"A, B\",x.png\n 0 ,,sub/y.png\n",
            ),
            ("x.png", ""),
            ("sub/y.png", ""),
        ]);
        let dataset = Dataset::open(dir.path()).expect("a data set");
        assert_eq!(names(&dir, &dataset.paths), ["x.png", "sub/y.png"]);
        assert_eq!(dataset.labels, [3, 0]);
        assert!(dataset.check_classes(4).is_ok());
        let error = dataset
            .check_classes(3)
            .expect_err("3 is one too many")
            .to_string();
        assert!(error.contains("x.png has label 3"), "{error}");
        let labels: Vec<usize> = dataset.load_many(&SQUASH, [2, 2]).map(|(l, _)| l).collect();
        assert_eq!(labels, [3, 0]);
    }

    #[test]
    fn csv_errors_name_the_line() {
        for (csv, words) in [
            ("file,label\nx.png,0\nnone.png,1\n", ["line 3", "none.png"]),
            ("file,label\nx.png,cat\n", ["line 2", "\"cat\""]),
            ("file,label\nx.png,-1\n", ["line 2", "\"-1\""]),
            ("file,class\nx.png,1\n", ["labels.csv", "\"label\""]),
            ("file,label\nx.png\n", ["labels.csv", "line: 2"]),
            ("file,label\n", ["no pictures", ""]),
        ] {
            let dir = folder(&[("labels.csv", csv), ("x.png", "")]);
            let error = Dataset::open(dir.path()).expect_err(csv).to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }

    #[test]
    fn class_folders_are_classes_in_sorted_order() {
        let dir = folder(&[("dog/1.png", ""), ("cat/2.png", ""), ("cat/1.png", "")]);
        let dataset = Dataset::open(dir.path()).expect("a data set");
        assert_eq!(
            names(&dir, &dataset.paths),
            ["cat/1.png", "cat/2.png", "dog/1.png"]
        );
        assert_eq!(dataset.labels, [0, 0, 1]);
        assert_eq!(
            dataset.class_names,
            Some(vec!["cat".to_owned(), "dog".to_owned()])
        );

        let loose = folder(&[("a.png", "")]);
        let error = Dataset::open(loose.path())
            .expect_err("no labels")
            .to_string();
        assert!(error.contains("labels.csv"), "{error}");
        let numbered = folder(&[("9/a.png", ""), ("10/a.png", "")]);
        let error = Dataset::open(numbered.path())
            .expect_err("ambiguous")
            .to_string();
        assert!(error.contains("pad them"), "{error}");
    }

    #[test]
    fn class_names_are_counted() {
        let dir = folder(&[
            ("labels.txt", "cat\r\ndog\n\n"),
            ("gap.txt", "cat\n\ndog\n"),
        ]);
        let path = dir.path().join("labels.txt");
        assert_eq!(
            read_class_names(&path, Some(2)).expect("names"),
            ["cat", "dog"]
        );
        let error = read_class_names(&path, Some(3))
            .expect_err("three")
            .to_string();
        assert!(
            error.contains("names 2 classes, but the model has 3"),
            "{error}"
        );
        let error = read_class_names(&dir.path().join("gap.txt"), None).expect_err("a gap");
        assert!(error.to_string().contains("line 2"), "{error}");
    }
}
