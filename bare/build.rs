//! Makes the models and pictures that the image holds, and says how it is linked.
//!
//! ```text
//! TPVIT_BARE_MODEL     a .tpv file; without it, small synthetic models of every architecture
//! TPVIT_BARE_PICTURES  its pictures: [height, width, 3] bytes of RGB each, one after the other
//! TPVIT_BARE_ISA       an instruction set, in whose order its weights are put; without it as the file has them
//! TPVIT_BARE_HEAP      bytes of the heap, where a file is parsed; 1 MiB without it
//! TPVIT_BARE_BLOCK     bytes of the block that a session lives in; 32 MiB without it
//! ```
//!
//! The small models are there four times: as files usually are, and in the order of each
//! instruction set of the architecture.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use tpvit_kernels::Isa;
use tpvit_models::synthetic::{self, VitConfig};
use tpvit_models::{BitWidth, Model, ModelData, write, write_for};

/// Pictures of each synthetic model.
const PICTURES: usize = 2;

/// A model in the image.
struct Embedded {
    name: String,
    /// The instruction set in whose order its weights are, if we know.
    order: Option<Isa>,
    file: Vec<u8>,
    pictures: Vec<u8>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let models = match variable("TPVIT_BARE_MODEL") {
        Some(path) => vec![given(Path::new(&path))?],
        None => synthetic_models()?,
    };
    let heap_bytes = bytes("TPVIT_BARE_HEAP", 1 << 20)?;
    let block_bytes = bytes("TPVIT_BARE_BLOCK", 32 << 20)?;
    embed(&models)?;

    let script = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("linker.ld");
    println!("cargo::rerun-if-changed={}", script.display());
    println!("cargo::rerun-if-changed=build.rs");
    // Where a loader puts the image: QEMU's `virt` has memory from 1 GiB on, and
    // describes itself at its beginning; a Raspberry Pi starts its kernel at 512 KiB.
    for (bin, start) in [("virt", 0x4008_0000_u64), ("raspi3b", 0x8_0000)] {
        for argument in [
            "-nostdlib".into(),
            "-nostartfiles".into(),
            "-static".into(),
            "-no-pie".into(),
            "-Wl,--build-id=none".into(),
            "-Wl,-z,max-page-size=4096".into(),
            format!("-Wl,--defsym=__image_start={start:#x}"),
            format!("-Wl,--defsym=HEAP_BYTES={heap_bytes}"),
            format!("-Wl,--defsym=BLOCK_BYTES={block_bytes}"),
            format!("-T{}", script.display()),
        ] {
            println!("cargo::rustc-link-arg-bin={bin}={argument}");
        }
    }
    Ok(())
}

fn variable(name: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// A number of bytes that the environment names.
fn bytes(name: &str, default: usize) -> Result<usize, String> {
    let Some(bytes) = variable(name) else {
        return Ok(default);
    };
    bytes
        .parse()
        .map_err(|e| format!("{name} is \"{bytes}\", no number of bytes: {e}"))
}

/// The model and pictures that the environment names.
fn given(path: &Path) -> Result<Embedded, Box<dyn Error>> {
    let read = |path: &Path| {
        println!("cargo::rerun-if-changed={}", path.display());
        fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
    };
    let file = read(path)?;
    let model = Model::parse(&file).map_err(|e| format!("{}: {e}", path.display()))?;
    let [height, width] = model.program().image;
    let bytes = height * width * 3;
    let pictures = match variable("TPVIT_BARE_PICTURES") {
        Some(path) => {
            let pictures = read(Path::new(&path))?;
            if pictures.is_empty() || pictures.len() % bytes != 0 {
                return Err(format!(
                    "{path}: {} bytes are not a whole number of pictures of {height} x {width} x 3",
                    pictures.len()
                )
                .into());
            }
            pictures
        }
        None => noise(PICTURES * bytes),
    };
    let name = path.file_stem().unwrap_or_default();
    let order = match variable("TPVIT_BARE_ISA") {
        Some(name) => {
            let isa = Isa::from_name(&name);
            Some(isa.ok_or_else(|| format!("TPVIT_BARE_ISA is \"{name}\", no instruction set"))?)
        }
        None => None,
    };
    let file = match order {
        Some(isa) => write_for(&model.to_data(), isa)?,
        None => file,
    };
    Ok(Embedded {
        order,
        name: name.to_string_lossy().replace(char::is_whitespace, "-"),
        file,
        pictures,
    })
}

/// A DeiT-T of two blocks, and a small model of each architecture there is; the same
/// bytes wherever they are made.
fn synthetic_models() -> Result<Vec<Embedded>, Box<dyn Error>> {
    let softmax = synthetic::row_max_softmax(BitWidth::B4);
    let config = VitConfig {
        depth: 2,
        ..VitConfig::DEIT_TINY
    };
    let deit = synthetic::vit(config, BitWidth::B4, BitWidth::B8, &softmax, 1);
    let mut models = embedded("deit-t-2-blocks", &deit)?;

    let softmax = synthetic::log2_softmax_per_head(BitWidth::B3, VitConfig::SMALLEST.heads);
    let mut codebooks =
        synthetic::vit(VitConfig::SMALLEST, BitWidth::B4, BitWidth::B4, &softmax, 2);
    synthetic::add_codebooks(&mut codebooks);
    models.extend(embedded("codebooks", &codebooks)?);

    let softmax = synthetic::row_max_softmax(BitWidth::B3);
    for (name, program) in synthetic::architectures() {
        let data = synthetic::model(program, BitWidth::B8, BitWidth::B8, &softmax, 3);
        models.extend(embedded(name, &data)?);
    }
    Ok(models)
}

/// The model in every order.
fn embedded(name: &str, data: &ModelData) -> Result<Vec<Embedded>, Box<dyn Error>> {
    let [height, width] = data.program.image;
    let pictures = noise(PICTURES * height * width * 3);
    let mut all = vec![Embedded {
        name: name.into(),
        order: None,
        file: write(data)?,
        pictures: pictures.clone(),
    }];
    for isa in [Isa::Neon, Isa::Dotprod, Isa::I8mm] {
        all.push(Embedded {
            name: format!("{name}/{}", isa.name()),
            order: Some(isa),
            file: write_for(data, isa)?,
            pictures: pictures.clone(),
        });
    }
    Ok(all)
}

/// Bytes without a pattern: the high ones of Knuth's linear congruential generator.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Writes all of it where `src/lib.rs` includes it.
fn embed(models: &[Embedded]) -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(env::var("OUT_DIR")?);
    let mut code =
        String::from("/// The models of this build.\npub static MODELS: &[Embedded] = &[\n");
    for (index, model) in models.iter().enumerate() {
        let file = folder.join(format!("{index}.tpv"));
        let pictures = folder.join(format!("{index}.rgb"));
        fs::write(&file, &model.file)?;
        fs::write(&pictures, &model.pictures)?;
        let order = match model.order {
            Some(isa) => format!("Some(Isa::{isa:?})"),
            None => "None".into(),
        };
        code += &format!(
            "Embedded {{ name: {:?}, order: {order}, file: on_a_line!({file:?}), \
             pictures: include_bytes!({pictures:?}) }},\n",
            model.name
        );
    }
    code += "];\n";
    fs::write(folder.join("models.rs"), code)?;
    Ok(())
}
