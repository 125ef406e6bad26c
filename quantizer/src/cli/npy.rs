//! NumPy's file of one array, version 1.0 (NEP 1): what `numpy.load` reads.
//!
//! ```text
//! 93 "NUMPY" 01 00           magic, version
//! u16                        bytes of the header after this
//! {'descr': '<f4', 'fortran_order': False, 'shape': (257, 384), }   spaces, \n
//! f32, f32, ...              from a multiple of 64 on, the last axis fastest
//! ```

/// What comes before the values of an array of little-endian f32.
///
/// # Panics
/// If the shape has no axis, or so many that the header does not fit.
pub(crate) fn header(shape: &[usize]) -> Vec<u8> {
    const ALIGN: usize = 64;
    let shape = match shape {
        [] => panic!("an array has an axis"),
        [one] => format!("({one},)"), // of Python's tuples, only this one ends in a comma
        [..] => {
            let axes: Vec<String> = shape.iter().map(usize::to_string).collect();
            format!("({})", axes.join(", "))
        }
    };
    let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    let mut header = b"\x93NUMPY\x01\0".to_vec();
    let begin = header.len() + size_of::<u16>();
    let end = (begin + text.len() + 1).next_multiple_of(ALIGN);
    let len = u16::try_from(end - begin).expect("a header of some axes is short");
    header.extend(len.to_le_bytes());
    header.extend(text.as_bytes());
    header.resize(end - 1, b' ');
    header.push(b'\n');
    header
}

/// The bytes of values.
pub(crate) fn values(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As NumPy 2 writes `zeros((3, 4), "<f4")`.
    #[test]
    fn a_header_is_that_of_numpy() {
        let dict = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }";
        let expected = format!("{dict:<117}\n");
        let found = header(&[3, 4]);
        assert_eq!(&found[..10], b"\x93NUMPY\x01\0\x76\0");
        assert_eq!(&found[10..], expected.as_bytes());
        assert_eq!(found.len(), 128);
    }

    #[test]
    fn values_begin_at_a_multiple_of_64() {
        for shape in [
            &[7][..],
            &[1, 1],
            &[257, 384],
            &[1000, 257, 1536],
            &[usize::MAX; 3],
        ] {
            let header = header(shape);
            assert_eq!(header.len() % 64, 0, "{shape:?}");
            let len = u16::from_le_bytes([header[8], header[9]]);
            assert_eq!(usize::from(len) + 10, header.len());
            assert_eq!(header.last(), Some(&b'\n'));
        }
        let text = header(&[7]);
        let text = String::from_utf8_lossy(&text[10..]).into_owned();
        assert!(text.contains("'shape': (7,), }"), "{text}");
    }

    #[test]
    fn values_are_little_endian() {
        assert_eq!(values(&[1.0, -2.5]), [0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0]);
    }
}
