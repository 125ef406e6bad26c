//! Pictures against Pillow 13 (libjpeg-turbo 3.2); `golden-pictures/make.py`
//! writes the files.
//!
//! The resize must be Pillow's bit for bit: both sum the same integers. The
//! decoders of PNG and lossless WebP have no choice either. Decoders of JPEG
//! and lossy WebP may round their transforms differently, so those are
//! compared within a bound.

use std::path::{Path, PathBuf};

use tpvit_models::{Interpolation, Preprocess, Resize};
use tpvit_quantizer::pictures::{Pixels, Problem, decode, decode_bytes, load, load_many, prepare};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden-pictures")
        .join(name)
}

fn photo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../models/zoo/photos")
        .join(name)
}

const PHOTOS: [&str; 6] = ["astronaut", "cat", "coffee", "flower", "rocket", "temple"];

/// Largest and mean absolute difference.
fn difference(a: &Pixels, b: &Pixels) -> (u8, f64) {
    assert_eq!([a.height, a.width], [b.height, b.width]);
    let each = || a.data.iter().zip(&b.data).map(|(a, b)| a.abs_diff(*b));
    let sum: u64 = each().map(u64::from).sum();
    (each().max().unwrap_or(0), sum as f64 / a.data.len() as f64)
}

/// The same, with a line that `--nocapture` shows.
fn measured(what: &str, a: &Pixels, b: &Pixels) -> (u8, f64) {
    let (max, mean) = difference(a, b);
    println!("{what}: max {max}, mean {mean:.4}");
    (max, mean)
}

fn preprocess(resize: Resize, interpolation: Interpolation) -> Preprocess {
    Preprocess {
        resize,
        interpolation,
        mean: [0.5; 3],
        std: [0.5; 3],
    }
}

#[test]
fn resize_and_crop_equal_pillow_bit_for_bit() {
    let mut reader = csv::Reader::from_path(golden("cases.csv")).expect("cases.csv");
    let mut cases = 0;
    for case in reader.records() {
        let case = case.expect("a case");
        let resize = match &case[1] {
            "squash" => Resize::Squash,
            side => Resize::ShorterSide(side.parse().expect("pixels")),
        };
        let interpolation = match &case[2] {
            "bicubic" => Interpolation::Bicubic,
            "bilinear" => Interpolation::Bilinear,
            other => panic!("filter {other}"),
        };
        let size = [3, 4].map(|at| case[at].parse().expect("pixels"));
        let source = decode(&golden(&format!("sources/{}.png", &case[0]))).expect("source");
        let expected = decode(&golden(&format!("expected/{}.png", &case[5]))).expect("expected");
        let out = prepare(&source, &preprocess(resize, interpolation), size).expect("covered");
        assert_eq!(
            measured(&case[5], &out, &expected),
            (0, 0.0),
            "{}",
            &case[5]
        );
        cases += 1;
    }
    assert!(cases > 30, "only {cases} cases");
}

#[test]
fn every_kind_of_picture_decodes_as_in_pillow() {
    for name in [
        "rgb.png",
        "rgba.png",
        "rgb16.png",
        "rgba16.png",
        "grey.png",
        "grey_alpha.png",
        "one_bit.png",
        "palette.png",
        "palette_alpha.png",
        "rgb.webp",
        "rgba.webp",
    ] {
        let picture = decode(&golden(&format!("modes/{name}"))).expect(name);
        let expected = decode(&golden(&format!("modes/{name}.rgb.png"))).expect(name);
        assert_eq!(measured(name, &picture, &expected), (0, 0.0), "{name}");
    }
}

/// A JPEG value is the rounded sum of an inverse DCT, then of a colour
/// conversion. Two correct decoders differ by at most 1 in each of Y, Cb and
/// Cr, which the conversion (factors up to 1.772) makes at most 1 + 1.772 and
/// the roundings 4. Where chroma is enlarged, libjpeg-turbo's filter and ours
/// may round once more before the conversion: 1 + 2 * 1.772, so 5.
#[test]
fn jpeg_and_lossy_webp_are_close_to_pillow() {
    for (name, max_bound, mean_bound) in [
        ("grey.jpg", 1, 0.1),
        ("full_chroma.jpg", 4, 0.5),
        ("half_chroma.jpg", 5, 0.5),
        ("progressive.jpg", 5, 0.5),
        ("rotated.jpg", 5, 0.5),
        ("cmyk.jpg", 5, 0.5),
        ("lossy.webp", 5, 0.5),
    ] {
        let picture = decode(&golden(&format!("modes/{name}"))).expect(name);
        let expected = decode(&golden(&format!("modes/{name}.rgb.png"))).expect(name);
        let (max, mean) = measured(name, &picture, &expected);
        assert!(
            max <= max_bound && mean <= mean_bound,
            "{name}: max {max}, mean {mean}"
        );
    }
    for name in PHOTOS {
        let whole = decode(&photo(&format!("{name}.jpg"))).expect(name);
        let expected = decode(&golden(&format!("decode/{name}.png"))).expect(name);
        let (y, x) = (whole.height / 2 - 32, whole.width / 2 - 32);
        let data = (y..y + 64)
            .flat_map(|y| &whole.data[(y * whole.width + x) * 3..][..64 * 3])
            .copied()
            .collect();
        let centre = Pixels {
            height: 64,
            width: 64,
            data,
        };
        let (max, mean) = measured(name, &centre, &expected);
        assert!(max <= 5 && mean <= 0.5, "{name}: max {max}, mean {mean}");
    }
}

/// The whole chain of a JPEG. A resize is a weighted mean; bicubic weights sum
/// to at most 1.25 in absolute value on each side, which bounds the growth of
/// a decoding difference of 5 by 1.25 * 1.25, and rounding adds 1 a side.
#[test]
fn a_photo_prepared_is_close_to_pillow() {
    let how = preprocess(Resize::ShorterSide(248), Interpolation::Bicubic);
    let out = load(&photo("rocket.jpg"), &how, [224, 224]).expect("a photo");
    let expected = "expected/rocket_whole_248_bicubic_224x224.png";
    let expected = decode(&golden(expected)).expect("expected");
    let (max, mean) = measured("rocket.jpg prepared", &out, &expected);
    assert!(max <= 9 && mean <= 0.5, "max {max}, mean {mean}");
}

#[test]
fn sixteen_bits_of_grey_keep_the_upper_eight() {
    // Pillow clips these to white, which no one trains on.
    let grey = image::ImageBuffer::from_fn(3, 1, |x, _| image::Luma([x as u16 * 0x4080 + 0xFF]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    let grey: image::ImageBuffer<image::Luma<u16>, _> = grey;
    grey.write_to(&mut bytes, image::ImageFormat::Png)
        .expect("a PNG");
    let picture = decode_bytes(bytes.get_ref()).expect("16-bit grey");
    assert_eq!(picture.data, [0, 0, 0, 0x41, 0x41, 0x41, 0x81, 0x81, 0x81]);
}

#[test]
fn broken_files_are_errors_with_their_name() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let check = |name: &str, bytes: &[u8], word: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        let error = decode(&path).expect_err(name).to_string();
        assert!(error.contains(name) && error.contains(word), "{error}");
    };
    let jpeg = std::fs::read(photo("cat.jpg")).expect("a photo");
    let png = std::fs::read(golden("modes/rgb.png")).expect("a PNG");
    check("half.jpg", &jpeg[..jpeg.len() / 2], "truncated");
    check("half.png", &png[..png.len() / 2], "cannot be decoded");
    check("empty.jpg", b"", "no JPEG, PNG or WebP");
    check("text.png", b"hello, I am a picture", "no JPEG, PNG or WebP");
    check(
        "anim.gif",
        b"GIF89a\x01\0\x01\0\0\0\0;",
        "no JPEG, PNG or WebP",
    );

    // A header that promises 60000 x 60000 pixels.
    let mut huge = png.clone();
    huge[16..24].copy_from_slice(&[0, 0, 0xEA, 0x60, 0, 0, 0xEA, 0x60]);
    let header_crc = crc32(&huge[12..29]);
    huge[29..33].copy_from_slice(&header_crc.to_be_bytes());
    check("huge.png", &huge, "cannot be decoded");

    let missing = decode(Path::new("no/such.jpg")).expect_err("missing");
    assert!(matches!(missing.problem, Problem::Read(_)), "{missing}");
}

/// PNG's checksum, ISO 3309.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

/// No damage of a file may panic, hang or return a picture of other pixels'
/// count than its size says.
#[test]
fn damaged_files_never_panic() {
    for name in [
        "half_chroma.jpg",
        "progressive.jpg",
        "palette_alpha.png",
        "rgba.webp",
    ] {
        let bytes = std::fs::read(golden(&format!("modes/{name}"))).expect(name);
        for at in 0..bytes.len().min(1500) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0xFF;
            for candidate in [&damaged[..], &bytes[..at]] {
                match decode_bytes(candidate) {
                    Ok(p) => assert_eq!(p.data.len(), p.height * p.width * 3),
                    Err(Problem::Panicked(message)) => println!("{name} at {at}: {message}"),
                    Err(_) => {}
                }
            }
        }
    }
}

#[test]
fn many_come_in_order_with_their_errors() {
    let how = preprocess(Resize::ShorterSide(40), Interpolation::Bilinear);
    let paths: Vec<PathBuf> = (0..40)
        .map(|i| match i % 7 {
            6 => PathBuf::from(format!("missing-{i}.jpg")),
            at => golden(&format!("sources/{}.png", PHOTOS[at])),
        })
        .collect();
    let loaded: Vec<_> = load_many(&paths, &how, [32, 36]).collect();
    assert_eq!(loaded.len(), paths.len());
    for (path, result) in paths.iter().zip(loaded) {
        match (load(path, &how, [32, 36]), result) {
            (Ok(expected), Ok(found)) => assert_eq!(found, expected),
            (Err(expected), Err(found)) => {
                assert_eq!(found, expected);
                assert_eq!(&found.path, path);
            }
            (expected, found) => panic!("{expected:?} alone, {found:?} among many"),
        }
    }
}
