//! `tpvit quantize --size-budget` and `--mac-budget`.

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use serde_json::json;
use tpvit_models::{BitWidth, Program};
use tpvit_quantizer::calibration::{
    AllocateStage, Allocation, Budget, ObserveSettings, Settings, Site, allocate, distance_name,
};
use tpvit_quantizer::checkpoint::Loaded;
use tpvit_quantizer::report::duration;

use super::output::{Table, bytes, progress, tell};

/// What takes less is not announced.
const WORTH_SAYING: Duration = Duration::from_secs(5);

/// How large or slow the result may be.
#[derive(Args, Clone, Copy)]
#[command(next_help_heading = "Mixed precision")]
pub(crate) struct BudgetArgs {
    /// Choose the width of each layer's weights, none above --weight-bits, so that all their codes
    /// take at most this many bytes; 900K and 2.5M are thousands and millions
    #[arg(long, value_parser = parse_size, value_name = "BYTES", conflicts_with = "mac_budget")]
    size_budget: Option<u64>,
    /// Choose the width of each layer's weights and activations, none above --weight-bits and
    /// --act-bits, so that the bit operations of a picture are at most this share of those with 8
    /// bits everywhere. Bit operations are multiply-accumulates times the bits of both factors
    #[arg(long, value_parser = parse_percent, value_name = "PERCENT")]
    mac_budget: Option<f64>,
}

impl BudgetArgs {
    /// The budget these flags describe, if any.
    pub(crate) fn budget(&self) -> Option<Budget> {
        let bytes = self.size_budget.map(Budget::Bytes);
        bytes.or(self.mac_budget.map(Budget::BitOperations))
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    let units = [("K", 1e3), ("M", 1e6), ("", 1.0)];
    let (number, unit) = units
        .iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, unit)))
        .expect("every text ends in nothing");
    match number.parse::<f64>() {
        Ok(n) if n > 0.0 && n * unit < 1e15 => Ok((n * unit) as u64),
        Ok(_) | Err(_) => Err("must be a number of bytes, such as 900K or 2.5M".into()),
    }
}

fn parse_percent(text: &str) -> Result<f64, String> {
    match text.strip_suffix('%').unwrap_or(text).parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        Ok(_) | Err(_) => Err("must be a percentage, above 0 and at most 100".into()),
    }
}

/// [`allocate`] with a progress bar, and the time it takes said when it is known.
pub(crate) fn allocate_with_bar(
    imported: &Loaded,
    picture: &(dyn Fn(usize) -> Option<Vec<f32>> + Sync),
    count: usize,
    observe: &ObserveSettings,
    settings: &Settings,
    budget: Budget,
) -> Result<Allocation> {
    let bar = progress(count, "calibrating");
    let start = Instant::now();
    let mut observed = (0, Duration::ZERO);
    let mut told = false;
    let mut step = |stage| match stage {
        AllocateStage::Observing(done) => {
            bar.set_position(done as u64);
            observed = (done, start.elapsed());
        }
        AllocateStage::Planning => bar.set_message("quantizing"),
        AllocateStage::Measuring(done, total) => {
            if !told {
                told = true;
                let each = observed.1.div_f64(observed.0.max(1) as f64);
                let expected = each.mul_f64(total as f64);
                if expected > WORTH_SAYING {
                    tell(format_args!(
                        "mixed precision: measuring each layer at each width takes about {}",
                        duration(expected)
                    ));
                }
                bar.set_message("measuring");
            }
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        }
    };
    let (program, weights) = (&imported.program, &imported.weights);
    let made = allocate(
        program, weights, picture, count, observe, settings, budget, &mut step,
    );
    bar.finish_and_clear();
    Ok(made?)
}

/// The chosen widths, as a table and a sentence.
pub(crate) fn describe(program: &Program, budget: Budget, allocation: &Allocation) -> String {
    let mut table = Table::new(["bits of", "weight", "output", "attention"]);
    let widths = &allocation.widths;
    let cell = |width: Option<&BitWidth>| width.map_or("-".into(), |w| w.bits().to_string());
    for (index, op) in program.ops.iter().enumerate() {
        let [weight, output, attention] =
            [&widths.weights, &widths.outputs, &widths.attention].map(|of| of.get(&index));
        if weight.or(output).or(attention).is_some() {
            let name = program.buffers[op.output().index()].name.clone();
            table.row([name, cell(weight), cell(output), cell(attention)]);
        }
    }
    let spent = match budget {
        Budget::Bytes(_) => format!(
            "{} of {} for the codes of all weights",
            bytes(allocation.cost as usize),
            bytes(allocation.limit as usize)
        ),
        Budget::BitOperations(percent) => format!(
            "{:.2} % of the bit operations with 8 bits everywhere, of {percent} %",
            percent * allocation.cost as f64 / allocation.limit as f64
        ),
    };
    let against = match allocation.uniform {
        None => String::new(),
        Some((width, distance)) => {
            let taken = match allocation.took_uniform() {
                true => ", which is taken",
                false => "",
            };
            format!(
                ", {distance:.4} with {} bits everywhere{taken}",
                width.bits()
            )
        }
    };
    format!(
        "{}\nmixed precision: {spent}\n{} of held-back pictures from float: {:.4} mixed{against}\n\n",
        table.render(),
        distance_name(program),
        allocation.mixed
    )
}

/// The same for machines, with the sensitivities.
pub(crate) fn as_json(program: &Program, allocation: &Allocation) -> serde_json::Value {
    let sites = allocation.sites.iter().map(|s| {
        let kind = match s.site {
            Site::Weight(_) => "weight",
            Site::Output(_) => "output",
            Site::Attention(_) => "attention",
        };
        let output = program.ops[s.site.op()].output();
        json!({
            "operation": program.buffers[output.index()].name,
            "kind": kind,
            "bits": s.chosen.bits(),
            "kl_added": s.added.iter().map(|(w, kl)| json!([w.bits(), kl])).collect::<Vec<_>>(),
        })
    });
    json!({
        "cost": allocation.cost,
        "limit": allocation.limit,
        "kl_mixed": allocation.mixed,
        "uniform_bits": allocation.uniform.map(|(w, _)| w.bits()),
        "kl_uniform": allocation.uniform.map(|(_, kl)| kl),
        "took_uniform": allocation.took_uniform(),
        "sites": sites.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("1234"), Ok(1234));
        assert_eq!(parse_size("900K"), Ok(900_000));
        assert_eq!(parse_size("2.5M"), Ok(2_500_000));
        for bad in ["", "M", "-1", "NaN", "1e30", "12G", "inf"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn percentages_are_above_0_and_at_most_100() {
        assert_eq!(parse_percent("41.5"), Ok(41.5));
        assert_eq!(parse_percent("25%"), Ok(25.0));
        for bad in ["0", "-3", "100.1", "NaN", "half"] {
            assert!(parse_percent(bad).is_err(), "{bad}");
        }
    }
}
