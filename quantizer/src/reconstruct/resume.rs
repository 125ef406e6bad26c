//! Checkpoints: what training has done so far, as bytes.
//!
//! ```text
//! magic "tpvckpt1"
//! fingerprints      4 x 32 bytes: model, plan, settings, pictures (BLAKE3)
//! position          u32 pass, u32 unit, u32 step of joint training
//! logs              JSON
//! state             vectors, each a u64 length and its values
//! checksum          32 bytes, of all before
//! ```
//!
//! Numbers are little-endian. The fingerprints tell which of its inputs
//! changed when a checkpoint does not fit; it is never used then.

use serde_json::{Value, json};

use super::{Lesson, Settings, UnitLog};
use crate::calibration::QuantPlan;
use crate::weights::Weights;

const MAGIC: &[u8; 8] = b"tpvckpt1";
const HASH: usize = 32;
/// What the fingerprints are of, in their order.
const PARTS: [&str; 4] = [
    "the model or its preprocessing",
    "the widths, the quantizers or the method before training",
    "the settings of training",
    "the calibration pictures",
];

/// Why a checkpoint cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResumeError {
    /// Not one of ours, cut short, or changed.
    #[error("it is no checkpoint of tpvit, or is damaged")]
    Damaged,
    /// It belongs to another run.
    #[error("it belongs to another run: {0} changed since")]
    Changed(&'static str),
}

/// Who we are: what a checkpoint must agree with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fingerprints([[u8; HASH]; 4]);

impl Fingerprints {
    /// Of everything that training starts from.
    pub(super) fn new(
        lesson: &Lesson<'_>,
        settings: &Settings,
        weights: &Weights,
        plan: &QuantPlan,
    ) -> Self {
        let mut model = blake3::Hasher::new();
        model.update(format!("{:?}", lesson.program).as_bytes());
        model.update(format!("{:?}", lesson.teacher).as_bytes());
        hash_weights(&mut model, lesson.float);
        let mut start = blake3::Hasher::new();
        hash_weights(&mut start, weights);
        let mut state = Writer::default();
        state.plan(plan);
        start.update(&state.0);
        start.update(format!("{:?}", plan.quantization.softmax).as_bytes());
        let mut recipe = blake3::Hasher::new();
        recipe.update(env!("CARGO_PKG_VERSION").as_bytes());
        recipe.update(format!("{settings:?}").as_bytes());
        let mut pictures = blake3::Hasher::new();
        for i in 0..lesson.count {
            let values = (lesson.picture)(i);
            values.iter().for_each(|v| {
                pictures.update(&v.to_le_bytes());
            });
        }
        Fingerprints([model, start, recipe, pictures].map(|h| *h.finalize().as_bytes()))
    }
}

fn hash_weights(hasher: &mut blake3::Hasher, weights: &Weights) {
    let mut bytes = Writer::default();
    weights.tensors.iter().for_each(|t| bytes.floats(t));
    hasher.update(&bytes.0);
}

/// Where training stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Position {
    /// The pass that runs; as many as there are once all have.
    pub(super) pass: u32,
    /// Its next unit.
    pub(super) unit: u32,
    /// The next step of joint training.
    pub(super) step: u32,
}

/// Builds the bytes of a checkpoint.
#[derive(Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn number(&mut self, x: u64) {
        self.0.extend(x.to_le_bytes());
    }

    pub(super) fn floats(&mut self, x: &[f32]) {
        self.number(x.len() as u64);
        x.iter().for_each(|v| self.0.extend(v.to_le_bytes()));
    }

    pub(super) fn bytes(&mut self, x: &[u8]) {
        self.number(x.len() as u64);
        self.0.extend(x);
    }

    /// What training changes.
    pub(super) fn weights(&mut self, weights: &Weights) {
        weights.tensors.iter().for_each(|t| self.floats(t));
    }

    /// What training changes.
    pub(super) fn plan(&mut self, plan: &QuantPlan) {
        for quant in plan.weights.iter().flatten() {
            self.floats(&quant.scale);
            self.bytes(&quant.zero_point);
            self.bytes(&quant.codes);
        }
        for quant in plan.quantization.activations.iter().flatten() {
            self.floats(&quant.scale);
        }
    }
}

/// Reads what a [`Writer`] wrote, into vectors of the same lengths.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], ResumeError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(ResumeError::Damaged)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn number(&mut self) -> Result<u64, ResumeError> {
        let bytes = self.take(8)?.try_into().map_err(|_| ResumeError::Damaged)?;
        Ok(u64::from_le_bytes(bytes))
    }

    pub(super) fn floats(&mut self, into: &mut [f32]) -> Result<(), ResumeError> {
        if self.number()? != into.len() as u64 {
            return Err(ResumeError::Damaged);
        }
        let bytes = self.take(4 * into.len())?;
        for (x, b) in into.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *x = f32::from_le_bytes(*b);
        }
        Ok(())
    }

    pub(super) fn bytes(&mut self, into: &mut [u8]) -> Result<(), ResumeError> {
        if self.number()? != into.len() as u64 {
            return Err(ResumeError::Damaged);
        }
        into.copy_from_slice(self.take(into.len())?);
        Ok(())
    }

    pub(super) fn weights(&mut self, weights: &mut Weights) -> Result<(), ResumeError> {
        weights.tensors.iter_mut().try_for_each(|t| self.floats(t))
    }

    pub(super) fn plan(&mut self, plan: &mut QuantPlan) -> Result<(), ResumeError> {
        for quant in plan.weights.iter_mut().flatten() {
            self.floats(&mut quant.scale)?;
            self.bytes(&mut quant.zero_point)?;
            self.bytes(&mut quant.codes)?;
        }
        for quant in plan.quantization.activations.iter_mut().flatten() {
            self.floats(&mut quant.scale)?;
        }
        Ok(())
    }
}

/// A whole checkpoint, but for the state, which `state` writes.
pub(super) fn write(
    fingerprints: &Fingerprints,
    position: &Position,
    logs: &[UnitLog],
    state: impl FnOnce(&mut Writer),
) -> Vec<u8> {
    let mut out = Writer(MAGIC.to_vec());
    fingerprints.0.iter().for_each(|h| out.0.extend(h));
    for x in [position.pass, position.unit, position.step] {
        out.0.extend(x.to_le_bytes());
    }
    let logs: Vec<Value> = logs.iter().map(to_json).collect();
    out.bytes(Value::from(logs).to_string().as_bytes());
    state(&mut out);
    let sum = *blake3::hash(&out.0).as_bytes();
    out.0.extend(sum);
    out.0
}

/// Where it stood, what was logged, and the state.
pub(super) fn read<'a>(
    bytes: &'a [u8],
    ours: &Fingerprints,
) -> Result<(Position, Vec<UnitLog>, Reader<'a>), ResumeError> {
    let (content, sum) = bytes
        .split_last_chunk::<HASH>()
        .ok_or(ResumeError::Damaged)?;
    let mut reader = Reader(content);
    if reader.take(MAGIC.len())? != MAGIC || blake3::hash(content).as_bytes() != sum {
        return Err(ResumeError::Damaged);
    }
    for (hash, part) in ours.0.iter().zip(PARTS) {
        if reader.take(HASH)? != hash {
            return Err(ResumeError::Changed(part));
        }
    }
    let mut small = || -> Result<u32, ResumeError> {
        let bytes = reader
            .take(4)?
            .try_into()
            .map_err(|_| ResumeError::Damaged)?;
        Ok(u32::from_le_bytes(bytes))
    };
    let position = Position {
        pass: small()?,
        unit: small()?,
        step: small()?,
    };
    let len = usize::try_from(reader.number()?).map_err(|_| ResumeError::Damaged)?;
    let logs: Value =
        serde_json::from_slice(reader.take(len)?).map_err(|_| ResumeError::Damaged)?;
    let logs = logs.as_array().ok_or(ResumeError::Damaged)?;
    let logs: Option<Vec<UnitLog>> = logs.iter().map(from_json).collect();
    Ok((position, logs.ok_or(ResumeError::Damaged)?, reader))
}

/// Floats as their bits: JSON has no infinity.
fn to_json(log: &UnitLog) -> Value {
    json!({
        "name": log.name,
        "before": log.before.to_bits(),
        "after": log.after.to_bits(),
        "steps": log.curve.iter().map(|p| p.0).collect::<Vec<_>>(),
        "losses": log.curve.iter().map(|p| p.1.to_bits()).collect::<Vec<_>>(),
        "note": log.note,
    })
}

fn from_json(value: &Value) -> Option<UnitLog> {
    let numbers = |key: &str| -> Option<Vec<u32>> {
        let values = value[key].as_array()?.iter();
        values.map(|v| u32::try_from(v.as_u64()?).ok()).collect()
    };
    let losses = numbers("losses")?.into_iter().map(f32::from_bits);
    Some(UnitLog {
        name: value["name"].as_str()?.into(),
        before: f64::from_bits(value["before"].as_u64()?),
        after: f64::from_bits(value["after"].as_u64()?),
        curve: numbers("steps")?.into_iter().zip(losses).collect(),
        note: value["note"].as_str()?.into(),
    })
}
