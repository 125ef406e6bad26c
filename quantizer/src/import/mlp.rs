//! Reads the second half of a block: `fc2(gelu(fc1(x)))`, or SwiGLU.

use super::error::Misfit;
use super::reduce::{Kind, Step};
use super::trace::Trace;
use super::walk::{BlockShape, Branch, Half, Linear, Stream, Walk, is_linear, linear_parts};
use crate::onnx::{ValueId, element_count};
use tpvit_models::Mlp;

impl<'r> Walk<'r, '_> {
    /// Takes the MLP of a block, and enters its kind and width into `shape`.
    pub(crate) fn mlp(
        &mut self,
        block: &str,
        x: Stream,
        half: Half<'r>,
        shape: &mut BlockShape,
    ) -> Result<Stream, Misfit> {
        let name = |part: &str| format!("{block}.{part}");
        self.layer_norm(&name("norm2"), half.norm, x.dim, |i| i);
        let branch = self.branch(half, x, "the second linear layer of an MLP")?;
        if !branch.rows.iter().copied().eq(0..x.tokens) {
            let expected = "the second linear layer of an MLP, token by token";
            return Err(Misfit::at(branch.step, expected));
        }
        let Branch {
            step: fc2, layer, ..
        } = branch;
        let expected = "GELU (the exact form) or SwiGLU";
        let middle = self.made_by(fc2.inputs[0], fc2, expected, |k| {
            matches!(k, Kind::Gelu | Kind::Times)
        })?;
        let first = match middle.kind {
            Kind::Gelu => self.plain(middle, half.norm)?,
            _ => self.gated(middle, half.norm, x.tokens)?,
        };
        shape.hidden = layer.k;
        shape.mlp = match middle.kind {
            Kind::Gelu => Mlp::Gelu,
            _ => Mlp::SwiGlu,
        };
        self.linear(&name("mlp.fc1"), first);
        self.linear(&name("mlp.fc2"), layer);
        Ok(Stream {
            value: half.sum.output,
            ..x
        })
    }

    /// `fc1` of `gelu(fc1(x))`.
    fn plain(&self, gelu: &Step, norm: &Step) -> Result<Linear, Misfit> {
        let expected = "the first linear layer of an MLP";
        let fc1 = self.made_by(gelu.inputs[0], gelu, expected, is_linear)?;
        self.reads_norm(fc1, norm)?;
        self.only_readers(norm, &[fc1], "no further use beside the MLP")?;
        Ok(linear_parts(fc1).expect("`made_by` found a linear layer"))
    }

    /// `[gate, value]` of `silu(gate(x)) * value(x)`: parts of one layer, or two.
    fn gated(&self, product: &Step, norm: &Step, tokens: usize) -> Result<Linear, Misfit> {
        let silu = |id: &ValueId| {
            let step = self.r.source(*id);
            step.filter(|step| matches!(step.kind, Kind::Silu))
        };
        let (gate, value) = match (silu(&product.inputs[0]), silu(&product.inputs[1])) {
            (Some(gate), None) => (gate.inputs[0], product.inputs[1]),
            (None, Some(gate)) => (gate.inputs[0], product.inputs[0]),
            (None, None) | (Some(_), Some(_)) => {
                let expected = "SwiGLU, the product of SiLU and a linear layer";
                return Err(Misfit::at(product, expected));
            }
        };
        let hidden = element_count(self.r.shape(value)).unwrap_or(0) / tokens;
        let mut both = Linear {
            weight: Vec::new(),
            bias: Vec::new(),
            k: 0,
        };
        let mut layers = Vec::new();
        for part in [gate, value] {
            let trace = Trace::new(self.r, part);
            let fc1 = self.expect(&trace, "the first linear layer of SwiGLU", is_linear)?;
            self.reads_norm(fc1, norm)?;
            let outputs = self.r.shape(fc1.output).last().copied().unwrap_or(0);
            let at = |_, i, c| i * hidden + c;
            let from = trace.blocks([1, tokens, hidden], outputs, at);
            let from =
                from.filter(|from| trace.scale == 1.0 && from.rows.iter().copied().eq(0..tokens));
            let Some(from) = from else {
                let expected = "half of the channels of SwiGLU, token by token";
                return Err(Misfit::at(fc1, expected));
            };
            let layer = linear_parts(fc1).expect("`expect` found a linear layer");
            both.k = layer.k;
            both.extend(&layer, &from.columns);
            layers.push(fc1);
        }
        self.only_readers(norm, &layers, "no further use beside the MLP")?;
        Ok(both)
    }

    fn reads_norm(&self, fc1: &Step, norm: &Step) -> Result<(), Misfit> {
        match self.r.base(fc1.inputs[0]) == self.r.base(norm.output) {
            true => Ok(()),
            false => Err(Misfit::at(
                fc1,
                "the output of the block's second LayerNorm as its input",
            )),
        }
    }
}
