//! `tpvit quantize --report`: where it goes, and which pictures it is measured on.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use tpvit_models::{Model, Preprocess, Program};
use tpvit_quantizer::checkpoint::Loaded;
use tpvit_quantizer::dataset::Dataset;
use tpvit_quantizer::report::{Accuracy, ReportData, TopK, page};
use tpvit_runtime::Options;

use super::eval::{Score, default_threads, eval_float, eval_tpv};
use super::model_file::need_classifier;
use super::output::{check_folder_writable, check_writable, tell, write_all_whole};

/// Flags of the report.
#[derive(Args)]
#[command(next_help_heading = "Report")]
pub(crate) struct ReportArgs {
    /// Write a report into this folder, which is made: report.html for people, report.json for
    /// programs
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Labelled pictures, as `tpvit eval` reads them, of which the report tells the accuracy in
    /// float and in integers. Without, labels.csv of the calibration folder is used, where the
    /// integer model looks better than it is
    #[arg(long, value_name = "DIR", requires = "report")]
    eval: Option<PathBuf>,
}

/// The two files of a report.
pub(crate) struct ReportFiles {
    folder: PathBuf,
    pub(crate) html: PathBuf,
    json: PathBuf,
}

/// Pictures to measure accuracy on.
pub(crate) struct Labelled {
    dataset: Dataset,
    /// The folder, as it was given.
    name: String,
    /// Whether the quantizer is fitted to them.
    calibration: bool,
}

impl ReportArgs {
    /// The files of the report, if one is wanted; none may take the place of `others`.
    pub(crate) fn files(&self, others: &[&Path]) -> Result<Option<ReportFiles>> {
        let Some(folder) = self.report.clone() else {
            return Ok(None);
        };
        check_folder_writable(&folder)?;
        let [html, json] = ["report.html", "report.json"].map(|name| folder.join(name));
        for file in [&html, &json] {
            if folder.is_dir() {
                check_writable(file)?;
            }
            if others.iter().any(|other| same_place(other, file)) {
                bail!(
                    "cannot write the report: {} is something else",
                    file.display()
                );
            }
        }
        Ok(Some(ReportFiles { folder, html, json }))
    }

    /// An error if accuracy is asked for of a model that has none.
    pub(crate) fn check(&self, program: &Program, model: &Path) -> Result<()> {
        match &self.eval {
            Some(_) => need_classifier(program, model).context("--eval"),
            None => Ok(()),
        }
    }

    /// The labelled pictures of `--eval`, or else the calibration pictures if all
    /// have labels; nothing without classes. What is wrong with `--eval` is an error; that `labels.csv` is of
    /// no use goes to `warnings`.
    pub(crate) fn labelled(
        &self,
        calibration: &Path,
        pictures: &[PathBuf],
        classes: usize,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Labelled>> {
        let same = |a: &Path, b: &Path| Some(a.canonicalize().ok()? == b.canonicalize().ok()?);
        if let Some(folder) = &self.eval {
            let dataset = Dataset::open(folder)?;
            dataset.check_classes(classes)?;
            return Ok(Some(Labelled {
                dataset,
                name: folder.display().to_string(),
                calibration: same(folder, calibration) == Some(true),
            }));
        }
        let csv = calibration.join("labels.csv").is_file();
        if self.report.is_none() || !csv || classes == 0 {
            return Ok(None);
        }
        match labels_of(calibration, pictures, classes) {
            Ok(dataset) => Ok(Some(Labelled {
                dataset,
                name: calibration.display().to_string(),
                calibration: true,
            })),
            Err(error) => {
                let error = format!("Accuracy was not measured: {error:#}.");
                warnings.push(error);
                Ok(None)
            }
        }
    }
}

/// Whether two files, which need not exist, are the same.
fn same_place(a: &Path, b: &Path) -> bool {
    let place = |path: &Path| {
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            Some(_) | None => Path::new("."),
        };
        Some((folder.canonicalize().ok()?, path.file_name()?.to_owned()))
    };
    place(a).is_some_and(|a| Some(a) == place(b))
}

/// Labels of exactly these calibration pictures.
fn labels_of(folder: &Path, pictures: &[PathBuf], classes: usize) -> Result<Dataset> {
    let all = Dataset::open(folder)?;
    let known: HashMap<&PathBuf, usize> =
        all.paths.iter().zip(all.labels.iter().copied()).collect();
    let label = |path: &PathBuf| {
        let label = known.get(path).copied();
        label.with_context(|| format!("labels.csv has no label of {}", path.display()))
    };
    let dataset = Dataset {
        labels: pictures.iter().map(label).collect::<Result<_>>()?,
        paths: pictures.to_vec(),
        class_names: None,
    };
    dataset.check_classes(classes)?;
    Ok(dataset)
}

impl Labelled {
    /// Accuracy of the imported model and of the file made of it. That it cannot be
    /// measured is no reason to lose the report: then it goes to `warnings`.
    pub(crate) fn accuracy(
        &self,
        imported: &Loaded,
        preprocess: &Preprocess,
        bytes: &[u8],
        warnings: &mut Vec<String>,
    ) -> Option<Accuracy> {
        match self.measure(imported, preprocess, bytes) {
            Ok(accuracy) => Some(accuracy),
            Err(error) => {
                let error = format!("accuracy was not measured: {error:#}");
                tell(&error);
                warnings.push(error);
                None
            }
        }
    }

    fn measure(
        &self,
        imported: &Loaded,
        preprocess: &Preprocess,
        bytes: &[u8],
    ) -> Result<Accuracy> {
        let threads = default_threads();
        let options = Options {
            threads: 1,
            ..Options::default()
        };
        let float = eval_float(imported, preprocess, &self.dataset, threads)?;
        let integer = eval_tpv(&Model::parse(bytes)?, &self.dataset, threads, &options)?;
        let top = |score: &Score| TopK {
            top1: score.top1,
            top5: score.top5,
        };
        Ok(Accuracy {
            data: self.name.clone(),
            calibration: self.calibration,
            images: self.dataset.paths.len(),
            float: top(&float),
            integer: top(&integer),
        })
    }
}

impl ReportFiles {
    /// Writes both files, or none.
    pub(crate) fn write(&self, data: &ReportData) -> Result<()> {
        std::fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot make folder {}", self.folder.display()))?;
        let json = format!("{:#}\n", data.json());
        write_all_whole(&[
            (&self.html, page(data).as_bytes()),
            (&self.json, json.as_bytes()),
        ])
    }
}
