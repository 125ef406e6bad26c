//! Bounds what decoding may cost before it is done.
//!
//! An empty message takes two bytes in the file and hundreds in memory, so a
//! file of some megabytes could fill a machine. A walk over the wire format
//! (<https://protobuf.dev/programming-guides/encoding/>) counts the messages
//! first, without keeping any.

use std::ops::Range;

/// Messages allowed in a file; a Swin export has some twenty thousand. At
/// about 700 bytes each, a hostile file costs below a gigabyte.
const MAX_MESSAGES: usize = 1 << 20;

/// Nesting allowed; plain graphs need 6, and each subgraph 3 more.
const MAX_DEPTH: usize = 64;

/// The messages of onnx.proto that hold others.
#[derive(Clone, Copy)]
enum Message {
    Model,
    Training,
    Function,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    ValueInfo,
    Type,
    TensorType,
    Shape,
    Annotation,
    Leaf,
}

/// Which message field `number` of `message` holds, if it holds one.
fn child(message: Message, number: u64) -> Option<Message> {
    use Message::*;
    match (message, number) {
        (Model, 7) | (Training, 1 | 2) | (Attribute, 6 | 11) => Some(Graph),
        (Model, 20) => Some(Training),
        (Model, 25) => Some(Function),
        (Graph, 1) | (Function, 7) => Some(Node),
        (Node, 5) | (Function, 11) => Some(Attribute),
        (Graph, 5) | (Attribute, 5 | 10) | (Sparse, 1 | 2) => Some(Tensor),
        (Graph, 15) | (Attribute, 22 | 23) => Some(Sparse),
        (Graph, 11..=13) | (Function, 12) => Some(ValueInfo),
        (Graph, 14) => Some(Annotation),
        (ValueInfo, 2) | (Attribute, 15) => Some(Type),
        (Type, 1) => Some(TensorType),
        (TensorType, 2) => Some(Shape),
        (Model, 8 | 14)
        | (Training, 3 | 4)
        | (Function, 9 | 14)
        | (Graph, 16)
        | (Node, 9)
        | (Tensor, 3 | 13 | 16)
        | (ValueInfo, 4)
        | (Shape, 1)
        | (Annotation, 2) => Some(Leaf),
        _ => None,
    }
}

/// Whether `bytes` hold few enough messages to be decoded. What is no
/// protobuf at all is for the decoder to refuse.
pub(super) fn affordable(bytes: &[u8]) -> bool {
    let mut waiting = vec![(Message::Model, 0..bytes.len(), 0)];
    let mut count = 0;
    while let Some((message, range, depth)) = waiting.pop() {
        count += 1;
        if count + waiting.len() > MAX_MESSAGES || depth > MAX_DEPTH {
            return false;
        }
        let mut at = range.start;
        while let Some((number, field)) = field(bytes, &mut at, range.end) {
            if let (Some(child), Some(field)) = (child(message, number), field) {
                waiting.push((child, field, depth + 1));
                if waiting.len() > MAX_MESSAGES {
                    return false;
                }
            }
        }
    }
    true
}

/// Number of the field at `at`, and where its bytes are if it has a length.
fn field(bytes: &[u8], at: &mut usize, end: usize) -> Option<(u64, Option<Range<usize>>)> {
    let tag = varint(bytes, at, end)?;
    let length = match tag & 7 {
        0 => {
            varint(bytes, at, end)?;
            return Some((tag >> 3, None));
        }
        1 => 8,
        2 => usize::try_from(varint(bytes, at, end)?).ok()?,
        5 => 4,
        _ => return None,
    };
    let start = *at;
    *at = start.checked_add(length).filter(|stop| *stop <= end)?;
    Some((tag >> 3, (tag & 7 == 2).then_some(start..*at)))
}

fn varint(bytes: &[u8], at: &mut usize, end: usize) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(..end)?.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_file_of_many_messages_is_too_dear() {
        let graph = |nodes: usize| {
            let length = 2 * nodes as u32;
            let mut bytes = vec![0x3a]; // field 7, with a length of four 7-bit groups
            bytes.extend((0..4).map(|i| (length >> (7 * i)) as u8 & 0x7f | 0x80));
            bytes.push(0);
            bytes.extend([0x0a, 0].repeat(nodes)); // empty nodes
            bytes
        };
        assert!(affordable(&graph(1000)));
        assert!(!affordable(&graph(MAX_MESSAGES)));
    }

    #[test]
    fn nonsense_is_left_to_the_decoder() {
        assert!(affordable(b""));
        assert!(affordable(b"hello"));
        assert!(affordable(&[0xff; 64]));
    }
}
