//! The same block in the spellings of other exporters, built node by node.
#![cfg(feature = "onnx")]

use prost::Message;
use tpvit_models::{Op, Program};
use tpvit_quantizer::import::{ImportError, Imported, load};
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::type_proto;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto,
};

const D: i64 = 12;
const HEADS: i64 = 3;
const HEAD: i64 = D / HEADS;
const T: i64 = 7; // a class token and 2x3 patches
const CLASSES: i64 = 5;

/// Writes nodes one after the other; values get names that mean nothing.
struct Writer {
    graph: GraphProto,
    random: u64,
}

impl Writer {
    fn new() -> Self {
        let mut graph = GraphProto::default();
        graph.input.push(info("picture", &[1, 3, 8, 12]));
        Writer { graph, random: 1 }
    }

    fn fresh(&self) -> String {
        format!("v{}", self.graph.node.len() + self.graph.initializer.len())
    }

    fn node(&mut self, op: &str, inputs: &[&str], attributes: &[AttributeProto]) -> String {
        let output = self.fresh();
        self.graph.node.push(NodeProto {
            op_type: op.into(),
            input: inputs.iter().map(|i| i.to_string()).collect(),
            output: vec![output.clone()],
            attribute: attributes.to_vec(),
            ..NodeProto::default()
        });
        output
    }

    /// Random values, in -1..1 over the square root of the rows.
    fn weight(&mut self, dims: &[i64]) -> String {
        let len: i64 = dims.iter().product();
        let scale = (dims[0] as f32).sqrt();
        let mut next = || {
            self.random = self
                .random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(99991);
            ((self.random >> 40) as f32 / (1u64 << 23) as f32 - 1.0) / scale
        };
        let values = (0..len).map(|_| next()).collect();
        self.floats(dims, values)
    }

    fn floats(&mut self, dims: &[i64], values: Vec<f32>) -> String {
        let name = self.fresh();
        self.graph.initializer.push(TensorProto {
            name: name.clone(),
            dims: dims.to_vec(),
            data_type: DataType::Float as i32,
            float_data: values,
            ..TensorProto::default()
        });
        name
    }

    fn scalar(&mut self, value: f32) -> String {
        self.floats(&[], vec![value])
    }

    fn list(&mut self, values: &[i64]) -> String {
        let name = self.fresh();
        self.graph.initializer.push(TensorProto {
            name: name.clone(),
            dims: vec![values.len() as i64],
            data_type: DataType::Int64 as i32,
            int64_data: values.to_vec(),
            ..TensorProto::default()
        });
        name
    }

    fn reshape(&mut self, x: &str, shape: &[i64]) -> String {
        let shape = self.list(shape);
        self.node("Reshape", &[x, &shape], &[])
    }

    fn transpose(&mut self, x: &str, perm: &[i64]) -> String {
        self.node("Transpose", &[x], &[ints("perm", perm)])
    }

    fn matmul(&mut self, x: &str, k: i64, n: i64) -> String {
        let weight = self.weight(&[k, n]);
        self.node("MatMul", &[x, &weight], &[])
    }

    fn linear(&mut self, x: &str, k: i64, n: i64) -> String {
        let product = self.matmul(x, k, n);
        let bias = self.weight(&[n]);
        self.node("Add", &[&bias, &product], &[])
    }

    /// Decomposed, with two separate subtractions and a reciprocal.
    fn layer_norm(&mut self, x: &str) -> String {
        let (eps, gamma, beta) = (self.scalar(1e-5), self.weight(&[D]), self.weight(&[D]));
        let axes = [ints("axes", &[-1])];
        let mean = self.node("ReduceMean", &[x], &axes);
        let centred = self.node("Sub", &[x, &mean], &[]);
        let again = self.node("Sub", &[x, &mean], &[]);
        let squared = self.node("Mul", &[&again, &again], &[]);
        let var = self.node("ReduceMean", &[&squared], &axes);
        let var = self.node("Add", &[&eps, &var], &[]);
        let root = self.node("Sqrt", &[&var], &[]);
        let inverse = self.node("Reciprocal", &[&root], &[]);
        let normed = self.node("Mul", &[&inverse, &centred], &[]);
        let scaled = self.node("Mul", &[&gamma, &normed], &[]);
        self.node("Add", &[&scaled, &beta], &[])
    }

    fn gelu(&mut self, x: &str, spelling: usize) -> String {
        let (one, half) = (self.scalar(1.0), self.scalar(0.5));
        let z = match spelling {
            0 | 1 => {
                let root = self.scalar(2f32.sqrt());
                self.node("Div", &[x, &root], &[])
            }
            _ => {
                let inverse = self.scalar(0.5f32.sqrt());
                self.node("Mul", &[&inverse, x], &[])
            }
        };
        let erf = self.node("Erf", &[&z], &[]);
        match spelling {
            0 => {
                let sum = self.node("Add", &[&erf, &one], &[]);
                let product = self.node("Mul", &[&sum, x], &[]);
                self.node("Mul", &[&half, &product], &[])
            }
            1 => {
                let sum = self.node("Add", &[&one, &erf], &[]);
                let halved = self.node("Mul", &[x, &half], &[]);
                self.node("Mul", &[&halved, &sum], &[])
            }
            _ => {
                let erf = self.node("Mul", &[&erf, &half], &[]);
                let phi = self.node("Add", &[&half, &erf], &[]);
                self.node("Mul", &[x, &phi], &[])
            }
        }
    }

    /// Patches `[1, 6, D]`, positions added before the class token joins.
    fn embed(&mut self) -> String {
        let weight = self.weight(&[D, 3, 4, 4]);
        let sides = [ints("kernel_shape", &[4, 4]), ints("strides", &[4, 4])];
        let conv = self.node("Conv", &["picture", &weight], &sides);
        let flat = self.node("Flatten", &[&conv], &[int("axis", 2)]);
        let rows = self.reshape(&flat, &[1, D, -1]);
        let tokens = self.transpose(&rows, &[0, 2, 1]);
        let position = self.weight(&[1, T - 1, D]);
        let tokens = self.node("Add", &[&position, &tokens], &[]);
        let class = self.weight(&[1, 1, D]);
        self.node("Concat", &[&class, &tokens], &[int("axis", 1)])
    }

    fn mlp(&mut self, x: &str, spelling: usize) -> String {
        let y = self.layer_norm(x);
        let hidden = self.linear(&y, D, 2 * D);
        let hidden = self.gelu(&hidden, spelling);
        let branch = self.linear(&hidden, 2 * D, D);
        self.node("Add", &[&branch, x], &[])
    }

    /// Hugging Face: separate q, k, v; the square root of the scale on both.
    fn separate(&mut self, x: &str) -> String {
        let y = self.layer_norm(x);
        let parts = [(), (), ()].map(|()| {
            let part = self.linear(&y, D, D);
            let part = self.reshape(&part, &[1, T, HEADS, HEAD]);
            self.transpose(&part, &[0, 2, 1, 3])
        });
        let [q, k, v] = parts;
        let k = self.transpose(&k, &[0, 1, 3, 2]);
        let root = self.scalar((HEAD as f32).powf(-0.25));
        let q = self.node("Mul", &[&q, &root], &[]);
        let k = self.node("Mul", &[&root, &k], &[]);
        self.attend(x, &q, &k, &v, None)
    }

    fn attend(&mut self, x: &str, q: &str, k: &str, v: &str, divide: Option<f32>) -> String {
        let mut scores = self.node("MatMul", &[q, k], &[]);
        if let Some(by) = divide {
            let by = self.scalar(by);
            scores = self.node("Div", &[&scores, &by], &[]);
        }
        let p = self.node("Softmax", &[&scores], &[int("axis", -1)]);
        let out = self.node("MatMul", &[&p, v], &[]);
        let out = self.transpose(&out, &[0, 2, 1, 3]);
        let out = self.reshape(&out, &[1, T, D]);
        let branch = self.linear(&out, D, D);
        self.node("Add", &[x, &branch], &[])
    }

    /// One product without a bias whose columns are `(channel, head, v|k|q)`.
    fn interleaved(&mut self, x: &str) -> String {
        let y = self.layer_norm(x);
        let all = self.matmul(&y, D, 3 * D);
        let all = self.reshape(&all, &[1, T, HEAD, HEADS, 3]);
        let all = self.transpose(&all, &[4, 0, 3, 1, 2]);
        let parts = [2i64, 1, 0].map(|i| {
            let at = self.fresh();
            self.graph.initializer.push(TensorProto {
                name: at.clone(),
                data_type: DataType::Int64 as i32,
                int64_data: vec![i],
                ..TensorProto::default()
            });
            self.node("Gather", &[&all, &at], &[int("axis", 0)])
        });
        let k = self.transpose(&parts[1], &[0, 1, 3, 2]);
        self.attend(x, &parts[0], &k, &parts[2], Some((HEAD as f32).sqrt()))
    }

    /// Class token first, then the norm; the head is a MatMul.
    fn head(&mut self, x: &str) -> String {
        let bounds = [0i64, 1, 1].map(|v| self.list(&[v]));
        let row = self.node("Slice", &[x, &bounds[0], &bounds[1], &bounds[2]], &[]);
        let row = self.reshape(&row, &[1, D]);
        let row = self.layer_norm(&row);
        self.linear(&row, D, CLASSES)
    }

    fn load(mut self, logits: &str) -> Result<Imported, ImportError> {
        self.graph.output.push(info(logits, &[1, CLASSES]));
        let model = ModelProto {
            ir_version: 8,
            graph: Some(self.graph),
            opset_import: vec![OperatorSetIdProto {
                domain: String::new(),
                version: 13,
            }],
            ..ModelProto::default()
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, model.encode_to_vec()).unwrap();
        load(&path, true)
    }
}

fn info(name: &str, shape: &[i64]) -> ValueInfoProto {
    let dim = |side: &i64| Dimension {
        value: Some(dimension::Value::DimValue(*side)),
        ..Dimension::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: DataType::Float as i32,
        shape: Some(TensorShapeProto {
            dim: shape.iter().map(dim).collect(),
        }),
    };
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Int as i32,
        i: value,
        ..AttributeProto::default()
    }
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Ints as i32,
        ints: values.to_vec(),
        ..AttributeProto::default()
    }
}

fn attention(program: &Program) -> (usize, usize, f32) {
    let mut found = program.ops.iter().filter_map(|op| match *op {
        Op::Attention {
            heads,
            head_dim,
            scale,
            ..
        } => Some((heads, head_dim, scale)),
        _ => None,
    });
    found.next().unwrap()
}

#[test]
fn separate_projections_with_half_the_scale_on_each_side() {
    for spelling in 0..3 {
        let mut w = Writer::new();
        let x = w.embed();
        let x = w.separate(&x);
        let x = w.mlp(&x, spelling);
        let logits = w.head(&x);
        // The import is compared with a run of the graph before it returns.
        let imported = w
            .load(&logits)
            .unwrap_or_else(|e| panic!("GELU {spelling}: {e}"));
        let (heads, head_dim, scale) = attention(&imported.program);
        assert_eq!((heads as i64, head_dim as i64), (HEADS, HEAD));
        assert!((scale - 0.5).abs() < 1e-6, "{scale}");
    }
}

#[test]
fn any_order_of_q_k_v_heads_and_channels_is_read_off() {
    let mut w = Writer::new();
    let x = w.embed();
    let x = w.interleaved(&x);
    let x = w.mlp(&x, 0);
    let logits = w.head(&x);
    let imported = w.load(&logits).unwrap_or_else(|e| panic!("{e}"));
    let bias = imported
        .program
        .tensors
        .iter()
        .position(|t| t.name == "blocks.0.attn.qkv.bias");
    let bias = &imported.weights.tensors[bias.unwrap()];
    assert!(
        bias.len() == 3 * D as usize && bias.iter().all(|b| *b == 0.0),
        "no bias is zeros"
    );
}

#[test]
fn a_bias_on_the_scores_is_refused() {
    let mut w = Writer::new();
    let x = w.embed();
    let y = w.layer_norm(&x);
    let parts = [(), (), ()].map(|()| {
        let part = w.linear(&y, D, D);
        let part = w.reshape(&part, &[1, T, HEADS, HEAD]);
        w.transpose(&part, &[0, 2, 1, 3])
    });
    let k = w.transpose(&parts[1], &[0, 1, 3, 2]);
    let bias = w.weight(&[HEADS, T, T]);
    let scores = w.node("MatMul", &[&parts[0], &k], &[]);
    let biased = w.node("Add", &[&scores, &bias], &[]);
    let p = w.node("Softmax", &[&biased], &[int("axis", -1)]);
    let out = w.node("MatMul", &[&p, &parts[2]], &[]);
    let out = w.transpose(&out, &[0, 2, 1, 3]);
    let out = w.reshape(&out, &[1, T, D]);
    let branch = w.linear(&out, D, D);
    let x = w.node("Add", &[&x, &branch], &[]);
    let x = w.mlp(&x, 0);
    let logits = w.head(&x);
    let error = w.load(&logits).unwrap_err();
    let ImportError::Unrecognised { node, op, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!((node, &op[..]), (&biased, "Add"), "{error}");
}

#[test]
fn fused_attention_is_refused_by_name() {
    let mut w = Writer::new();
    let x = w.embed();
    let y = w.layer_norm(&x);
    let [q, k, v] = [(), (), ()].map(|()| w.linear(&y, D, D));
    let fused = w.node("Attention", &[&q, &k, &v], &[int("q_num_heads", HEADS)]);
    let branch = w.linear(&fused, D, D);
    let x = w.node("Add", &[&x, &branch], &[]);
    let x = w.mlp(&x, 0);
    let logits = w.head(&x);
    let error = w.load(&logits).unwrap_err();
    println!("{error}");
    let ImportError::Unrecognised { node, op, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!((node, &op[..]), (&fused, "Attention"), "{error}");
    assert!(error.to_string().contains("operator set 22"), "{error}");
}

#[test]
fn a_convolutional_network_is_refused() {
    let mut w = Writer::new();
    let weight = w.weight(&[D, 3, 3, 3]);
    let attributes = [ints("kernel_shape", &[3, 3]), ints("pads", &[1, 1, 1, 1])];
    let conv = w.node("Conv", &["picture", &weight], &attributes);
    let relu = w.node("Relu", &[&conv], &[]);
    let pooled = w.node("GlobalAveragePool", &[&relu], &[]);
    let flat = w.node("Flatten", &[&pooled], &[int("axis", 1)]);
    let logits = w.linear(&flat, D, CLASSES);
    let error = w.load(&logits).unwrap_err().to_string();
    println!("{error}");
    assert!(
        error.contains("(Conv)") && error.contains("patch embedding"),
        "{error}"
    );
}
