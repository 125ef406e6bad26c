//! Nodes and values: the part of an ONNX model that is needed to recognise it.

use super::proto::File;
use super::{OnnxError, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tract_onnx::pb::tensor_shape_proto::dimension;
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto};
use tract_onnx::pb::{attribute_proto::AttributeType, type_proto};

/// Index of a value in [`Graph::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(pub usize);

/// Index of a node in [`Graph::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub usize);

/// An ONNX graph whose indexes are sound and whose nodes are in topological order.
#[derive(Clone, Debug)]
pub struct Graph {
    /// The file it came from.
    pub path: PathBuf,
    /// Version of the standard operator set.
    pub opset: i64,
    /// In topological order.
    pub nodes: Vec<Node>,
    /// Everything that is computed or constant.
    pub values: Vec<Value>,
    /// The inputs that are not initializers.
    pub inputs: Vec<ValueId>,
    /// At least one.
    pub outputs: Vec<ValueId>,
}

/// One operation.
#[derive(Clone, Debug)]
pub struct Node {
    /// May be empty; never used to recognise anything.
    pub name: String,
    /// Such as `MatMul`.
    pub op: String,
    /// Whose operator; empty for the standard's (`ai.onnx`).
    pub domain: String,
    /// `None` for an optional input left out.
    pub inputs: Vec<Option<ValueId>>,
    /// `None` for an optional output left out.
    pub outputs: Vec<Option<ValueId>>,
    /// By name.
    pub attributes: BTreeMap<String, Attribute>,
}

/// One value.
#[derive(Clone, Debug)]
pub struct Value {
    /// Unique; used in messages and to tap a reference run.
    pub name: String,
    /// The node that writes it and which of its outputs it is.
    pub producer: Option<(NodeId, usize)>,
    /// Its tensor, for initializers and `Constant` nodes.
    pub constant: Option<Arc<Tensor>>,
    /// For graph inputs: the sides, `None` where dynamic.
    pub declared: Option<Vec<Option<usize>>>,
}

/// A node's parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// One integer.
    Int(i64),
    /// One float.
    Float(f32),
    /// Text.
    Text(String),
    /// Integers.
    Ints(Vec<i64>),
    /// Floats.
    Floats(Vec<f32>),
    /// A tensor.
    Tensor(Arc<Tensor>),
    /// Subgraphs and others, of no use here.
    Other,
}

impl Node {
    /// An integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.attributes.get(name) {
            Some(Attribute::Int(v)) => Some(*v),
            Some(_) | None => None,
        }
    }

    /// A float attribute.
    pub fn float(&self, name: &str) -> Option<f32> {
        match self.attributes.get(name) {
            Some(Attribute::Float(v)) => Some(*v),
            Some(_) | None => None,
        }
    }

    /// A list of integers.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attributes.get(name) {
            Some(Attribute::Ints(v)) => Some(v),
            Some(_) | None => None,
        }
    }

    /// A text.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.attributes.get(name) {
            Some(Attribute::Text(v)) => Some(v),
            Some(_) | None => None,
        }
    }

    /// Input number `index`, if it is there.
    pub fn input(&self, index: usize) -> Option<ValueId> {
        self.inputs.get(index).copied().flatten()
    }
}

impl Graph {
    /// A node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// A value.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0]
    }

    /// Checks a decoded model and makes a graph of it.
    ///
    /// # Errors
    /// As [`super::read`].
    pub(crate) fn from_proto(path: &Path, model: &ModelProto) -> Result<Self, OnnxError> {
        let file = File { path };
        let standard = |d: &str| d.is_empty() || d == "ai.onnx";
        let mut opsets = model.opset_import.iter().filter(|o| standard(&o.domain));
        let (Some(graph), Some(opset)) = (&model.graph, opsets.next()) else {
            return Err(OnnxError::NotOnnx {
                path: path.to_owned(),
                detail: "the graph or its operator set version is missing".into(),
            });
        };
        let mut builder = Builder {
            file: &file,
            values: Vec::new(),
            by_name: HashMap::new(),
        };
        let (inputs, nodes, outputs) = builder.graph(graph)?;
        Ok(Graph {
            path: path.to_owned(),
            opset: opset.version,
            nodes,
            values: builder.values,
            inputs,
            outputs,
        })
    }
}

struct Builder<'a> {
    file: &'a File<'a>,
    values: Vec<Value>,
    by_name: HashMap<String, ValueId>,
}

type Parts = (Vec<ValueId>, Vec<Node>, Vec<ValueId>);

impl Builder<'_> {
    fn graph(&mut self, graph: &GraphProto) -> Result<Parts, OnnxError> {
        for proto in &graph.initializer {
            let tensor = Tensor::decode(self.file, &proto.name, proto)?;
            if let Some((index, value)) = tensor.not_finite() {
                return Err(OnnxError::NotFinite {
                    path: self.file.path.to_owned(),
                    tensor: proto.name.clone(),
                    index,
                    value,
                });
            }
            let id = self.define(&proto.name, None)?;
            self.values[id.0].constant = Some(Arc::new(tensor));
        }
        let mut inputs = Vec::new();
        for info in &graph.input {
            // Old files list initializers among the inputs, too.
            if self.by_name.contains_key(&info.name) {
                continue;
            }
            let id = self.define(&info.name, None)?;
            self.values[id.0].declared = declared_shape(info);
            inputs.push(id);
        }
        let mut nodes = Vec::with_capacity(graph.node.len());
        for proto in &graph.node {
            let id = NodeId(nodes.len());
            nodes.push(self.node(id, proto)?);
        }
        let outputs = graph.output.iter().map(|info| {
            let id = self.by_name.get(&info.name).copied();
            id.ok_or_else(|| {
                self.file
                    .damaged(&info.name, "this output is never computed")
            })
        });
        let outputs = outputs.collect::<Result<Vec<_>, _>>()?;
        if outputs.is_empty() {
            return Err(self.file.damaged("graph", "it has no output"));
        }
        Ok((inputs, nodes, outputs))
    }

    fn define(
        &mut self,
        name: &str,
        producer: Option<(NodeId, usize)>,
    ) -> Result<ValueId, OnnxError> {
        let id = ValueId(self.values.len());
        if self.by_name.insert(name.to_owned(), id).is_some() {
            return Err(self.file.damaged(name, "this value is defined twice"));
        }
        self.values.push(Value {
            name: name.to_owned(),
            producer,
            constant: None,
            declared: None,
        });
        Ok(id)
    }

    fn node(&mut self, id: NodeId, proto: &NodeProto) -> Result<Node, OnnxError> {
        let lookup = |name: &String| match self.by_name.get(name) {
            _ if name.is_empty() => Ok(None),
            Some(id) => Ok(Some(*id)),
            None => Err(self
                .file
                .damaged(name, "this value is used before it is computed")),
        };
        let inputs = proto.input.iter().map(lookup).collect::<Result<_, _>>()?;
        let mut attributes = BTreeMap::new();
        for attribute in &proto.attribute {
            attributes.insert(attribute.name.clone(), self.attribute(proto, attribute)?);
        }
        let mut outputs = Vec::new();
        for (index, name) in proto.output.iter().enumerate() {
            outputs.push(match name.is_empty() {
                true => None,
                false => Some(self.define(name, Some((id, index)))?),
            });
        }
        let standard = proto.domain.is_empty() || proto.domain == "ai.onnx";
        let domain = if standard { "" } else { &proto.domain };
        let node = Node {
            name: proto.name.clone(),
            op: proto.op_type.clone(),
            domain: domain.to_owned(),
            inputs,
            outputs,
            attributes,
        };
        if let (Some(tensor), Some(Some(output))) = (constant(&node), node.outputs.first()) {
            self.values[output.0].constant = Some(tensor);
        }
        Ok(node)
    }

    fn attribute(&self, node: &NodeProto, proto: &AttributeProto) -> Result<Attribute, OnnxError> {
        Ok(match AttributeType::try_from(proto.r#type) {
            Ok(AttributeType::Int) => Attribute::Int(proto.i),
            Ok(AttributeType::Float) => Attribute::Float(proto.f),
            Ok(AttributeType::String) => {
                Attribute::Text(String::from_utf8_lossy(&proto.s).into_owned())
            }
            Ok(AttributeType::Ints) => Attribute::Ints(proto.ints.clone()),
            Ok(AttributeType::Floats) => Attribute::Floats(proto.floats.clone()),
            Ok(AttributeType::Tensor) => {
                let what = format!("attribute {} of node {}", proto.name, node.name);
                let missing = || self.file.damaged(&what, "its tensor is missing");
                let tensor = proto.t.as_ref().ok_or_else(missing)?;
                Attribute::Tensor(Arc::new(Tensor::decode(self.file, &what, tensor)?))
            }
            Ok(_) | Err(_) => Attribute::Other,
        })
    }
}

/// The value of a `Constant` node, whichever attribute holds it.
fn constant(node: &Node) -> Option<Arc<Tensor>> {
    use super::Data;
    if node.op != "Constant" || !node.domain.is_empty() {
        return None;
    }
    let tensor = |shape, data| Some(Arc::new(Tensor { shape, data }));
    let (name, attribute) = node.attributes.iter().next()?;
    match (name.as_str(), attribute) {
        ("value", Attribute::Tensor(t)) => Some(t.clone()),
        ("value_int", Attribute::Int(v)) => tensor(vec![], Data::Int(vec![*v])),
        ("value_ints", Attribute::Ints(v)) => tensor(vec![v.len()], Data::Int(v.clone())),
        ("value_float", Attribute::Float(v)) => tensor(vec![], Data::Float(vec![*v])),
        ("value_floats", Attribute::Floats(v)) => tensor(vec![v.len()], Data::Float(v.clone())),
        _ => None,
    }
}

fn declared_shape(info: &ValueInfoProto) -> Option<Vec<Option<usize>>> {
    let type_proto::Value::TensorType(tensor) = info.r#type.as_ref()?.value.as_ref()?;
    let side = |value: &Option<dimension::Value>| match value {
        Some(dimension::Value::DimValue(v)) => usize::try_from(*v).ok().filter(|v| *v > 0),
        Some(dimension::Value::DimParam(_)) | None => None,
    };
    let dims = &tensor.shape.as_ref()?.dim;
    Some(dims.iter().map(|d| side(&d.value)).collect())
}
