//! What is written is what is read.
#![forbid(unsafe_code)]

mod common;

use common::{random_vit, softmaxes};
use proptest::prelude::*;
use tpvit_models::synthetic::{self, VitConfig};
use tpvit_models::{
    BitWidth, Model, ModelData, SoftmaxMethod, Tensor, TensorData, TensorId, write,
};

fn round_trip(data: &ModelData) {
    let bytes = write(data).expect("the model is valid");
    let model = Model::parse(&bytes).expect("what is written can be read");
    assert_eq!(&model.to_data(), data);
    assert_eq!(
        write(&model.to_data()).as_ref(),
        Ok(&bytes),
        "same bytes again"
    );
    assert_eq!(model.file_len(), bytes.len());
}

#[test]
fn every_width_of_weights_and_activations_returns() {
    for weight_bits in BitWidth::ALL {
        for act_bits in BitWidth::ALL {
            let softmax = synthetic::row_max_softmax(BitWidth::B3);
            round_trip(&synthetic::vit(
                VitConfig::SMALLEST,
                weight_bits,
                act_bits,
                &softmax,
                1,
            ));
        }
    }
}

#[test]
fn every_softmax_returns() {
    for softmax in softmaxes() {
        let act_bits = BitWidth::B4;
        round_trip(&synthetic::vit(
            VitConfig::SMALLEST,
            BitWidth::B3,
            act_bits,
            &softmax,
            1,
        ));
    }
}

/// Whatever tells people where codes come from, with one codebook and with one
/// for each head.
#[test]
fn every_method_returns() {
    let shared = synthetic::log2_softmax(BitWidth::B3);
    let per_head = synthetic::log2_softmax_per_head(BitWidth::B3, VitConfig::SMALLEST.heads);
    for method in SoftmaxMethod::ALL {
        for mut softmax in [shared.clone(), per_head.clone()] {
            softmax.method = method;
            let (config, bits) = (VitConfig::SMALLEST, BitWidth::B4);
            round_trip(&synthetic::vit(config, bits, bits, &softmax, 1));
        }
    }
}

#[test]
fn every_architecture_returns() {
    for (name, program) in synthetic::architectures() {
        for (weights, activations) in [
            (BitWidth::B2, BitWidth::B3),
            (BitWidth::B4, BitWidth::B4),
            (BitWidth::B6, BitWidth::B8),
            (BitWidth::B8, BitWidth::B6),
        ] {
            let softmax = synthetic::row_max_softmax(weights);
            let mut data = synthetic::model(program.clone(), weights, activations, &softmax, 1);
            data.provenance = name.into();
            round_trip(&data);
            synthetic::add_codebooks(&mut data);
            round_trip(&data);
        }
    }
}

#[test]
fn a_model_of_real_size_returns() {
    let softmax = synthetic::row_max_softmax(BitWidth::B4);
    let (bits, config) = (BitWidth::B4, VitConfig::DEIT_TINY);
    round_trip(&synthetic::vit(config, bits, BitWidth::B8, &softmax, 7));
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let make = |seed| {
        let softmax = synthetic::log2_softmax(BitWidth::B4);
        write(&synthetic::vit(
            VitConfig::SMALLEST,
            BitWidth::B6,
            BitWidth::B8,
            &softmax,
            seed,
        ))
    };
    assert_eq!(make(5), make(5));
    assert_ne!(make(5), make(6));
}

#[test]
fn views_give_the_values_that_were_written() {
    let data = synthetic::tiny();
    let bytes = write(&data).unwrap();
    let model = Model::parse(&bytes).unwrap();
    for (index, expected) in data.tensors.iter().enumerate() {
        match (model.tensor(TensorId(index as u16)), expected) {
            (Tensor::Float(view), TensorData::Float(values)) => {
                assert_eq!(view.to_vec(), *values);
                assert_eq!(view.get(view.len() - 1), values.last().copied());
                assert_eq!(view.get(view.len()), None);
                let mut copy = vec![0.0; view.len()];
                view.copy_to(&mut copy);
                assert_eq!(copy, *values);
            }
            (Tensor::Weight(view), TensorData::Weight(weight)) => {
                assert_eq!(view.bits(), weight.bits);
                assert_eq!(view.scales().to_vec(), weight.scale);
                assert_eq!(view.zero_points(), weight.zero_point);
                let mut row = vec![0; view.cols()];
                for (n, expected) in weight.codes.chunks(view.cols()).enumerate() {
                    view.unpack_row(n, &mut row);
                    assert_eq!(row, expected);
                }
            }
            (found, _) => panic!("tensor {index} changed its role: {found:?}"),
        }
    }
    assert_eq!(model.label(9), Some("class 9"));
    assert_eq!(model.label(10), None);
    assert_eq!(model.provenance(), data.provenance);
    assert_eq!(model.version(), (1, 0));
}

#[test]
fn sections_and_codes_are_aligned() {
    let bytes = write(&synthetic::tiny()).unwrap();
    let model = Model::parse(&bytes).unwrap();
    let names: Vec<_> = model.sections().iter().map(|s| s.kind.name()).collect();
    let expected = [
        "PROGRAM",
        "TENSORS",
        "QUANT",
        "PREPROCESS",
        "LABELS",
        "PROVENANCE",
        "DATA",
    ];
    assert_eq!(names, expected);
    assert!(model.sections().iter().all(|s| s.offset % 64 == 0));
    for (index, info) in model.program().tensors.iter().enumerate() {
        if let Tensor::Weight(weight) = model.tensor(TensorId(index as u16)) {
            let offset = weight.codes().as_ptr() as usize - bytes.as_ptr() as usize;
            assert_eq!(offset % 64, 0, "{}", info.name);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_models_return(data in random_vit()) {
        round_trip(&data);
    }
}
