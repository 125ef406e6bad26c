//! What the image answers, computed by a program of this machine.

use std::error::Error;

use tpvit_bare::{MODELS, write_answer};
use tpvit_models::Model;
use tpvit_runtime::{Options, Session};

fn main() -> Result<(), Box<dyn Error>> {
    let mut text = String::new();
    for embedded in MODELS {
        let model = Model::parse(embedded.file)?;
        let mut session = Session::new(&model, &Options::default())?;
        eprintln!("{} with {}", embedded.name, session.isa().name());
        for (index, pixels) in embedded.pictures_of(&model).enumerate() {
            let result = session.run(pixels)?;
            write_answer(&mut text, embedded.name, index, &model, result)?;
        }
    }
    print!("{text}");
    Ok(())
}
