//! The multiple-choice knapsack: one item of each unit, the least loss that a
//! limit on the cost allows.
//!
//! ```text
//! minimise  sum over u of loss[u][x_u]     subject to  sum over u of cost[u][x_u] <= limit
//! ```
//!
//! Dynamic programming over the Pareto front (Nemhauser and Ullmann 1969): unit
//! after unit, of all sums so far, keep those that no other sum beats in both
//! cost and loss. That is exact, and the front is short where costs are
//! multiples of few numbers, as the sizes of a Transformer's weights are. A front
//! of more than [`MOST`] sums is thinned to the best one in each `MOST`-th part of
//! the limit.

/// Sums that a front may have.
const MOST: usize = 1 << 15;

/// What one choice costs and loses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Item {
    pub(super) cost: u64,
    pub(super) loss: f64,
}

/// A sum over the units so far.
#[derive(Clone, Copy)]
struct Sum {
    cost: u64,
    loss: f64,
    /// The sum without the last unit, in the front before.
    before: u32,
    item: u32,
}

/// The item of each unit with the least total loss, or `None` if even the
/// cheapest ones cost more than `limit`.
///
/// # Panics
/// If a unit has no item.
pub(super) fn solve(units: &[Vec<Item>], limit: u64) -> Option<Vec<usize>> {
    let cheapest = |unit: &Vec<Item>| unit.iter().map(|i| i.cost).min().expect("an item");
    // What the units not yet chosen cost at least.
    let mut ahead: u64 = units.iter().map(cheapest).sum();
    let mut fronts: Vec<Vec<Sum>> = Vec::with_capacity(units.len());
    let mut front = vec![Sum {
        cost: 0,
        loss: 0.0,
        before: 0,
        item: 0,
    }];
    for unit in units {
        ahead -= cheapest(unit);
        front = extended(&front, unit, limit.saturating_sub(ahead));
        thin(&mut front, limit);
        fronts.push(front.clone());
    }
    // Ascending in cost, descending in loss: the last one is the best.
    let mut at = front.len().checked_sub(1)?;
    let mut chosen = Vec::with_capacity(units.len());
    for front in fronts.iter().rev() {
        chosen.push(front[at].item as usize);
        at = front[at].before as usize;
    }
    chosen.reverse();
    Some(chosen)
}

/// Every sum of `front` with every item of `unit` that costs at most `limit`
/// and that no other beats; by ascending cost.
fn extended(front: &[Sum], unit: &[Item], limit: u64) -> Vec<Sum> {
    let mut sums = Vec::with_capacity(front.len() * unit.len());
    for (before, sum) in (0u32..).zip(front) {
        for (number, item) in (0u32..).zip(unit) {
            let cost = sum.cost + item.cost;
            if cost <= limit {
                sums.push(Sum {
                    cost,
                    loss: sum.loss + item.loss,
                    before,
                    item: number,
                });
            }
        }
    }
    sums.sort_by(|a, b| a.cost.cmp(&b.cost).then(a.loss.total_cmp(&b.loss)));
    let mut least = f64::INFINITY;
    sums.retain(|sum| {
        let better = sum.loss < least;
        least = least.min(sum.loss);
        better
    });
    sums
}

/// Leaves the best sum of each part of the limit, and the cheapest of all.
fn thin(front: &mut Vec<Sum>, limit: u64) {
    if front.len() <= MOST {
        return;
    }
    let part = |sum: &Sum| u128::from(sum.cost) * MOST as u128 / (u128::from(limit) + 1);
    let parts: Vec<u128> = front.iter().map(part).collect();
    let mut at = 0;
    front.retain(|_| {
        let best = parts.get(at + 1) != Some(&parts[at]);
        at += 1;
        best || at == 1
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn total(units: &[Vec<Item>], chosen: &[usize]) -> Item {
        let items = units.iter().zip(chosen).map(|(unit, &i)| unit[i]);
        items.fold(Item { cost: 0, loss: 0.0 }, |sum, item| Item {
            cost: sum.cost + item.cost,
            loss: sum.loss + item.loss,
        })
    }

    /// By trying everything.
    fn least_loss(units: &[Vec<Item>], limit: u64) -> Option<f64> {
        let mut sums = vec![Item { cost: 0, loss: 0.0 }];
        for unit in units {
            let add = |sum: &Item| {
                let sum = *sum;
                unit.iter().map(move |item| Item {
                    cost: sum.cost + item.cost,
                    loss: sum.loss + item.loss,
                })
            };
            sums = sums.iter().flat_map(add).collect();
        }
        let fits = sums.iter().filter(|sum| sum.cost <= limit);
        fits.map(|sum| sum.loss).min_by(f64::total_cmp)
    }

    proptest! {
        #[test]
        fn nothing_that_fits_is_better(
            units in prop::collection::vec(
                // Losses in eighths: sums are exact, in any order.
                prop::collection::vec((0u64..50, 0u32..80), 1..5), 0..7),
            limit in 0u64..200,
        ) {
            let item = |&(cost, loss): &(u64, u32)| Item { cost, loss: f64::from(loss) / 8.0 };
            let units: Vec<Vec<Item>> =
                units.iter().map(|unit| unit.iter().map(item).collect()).collect();
            let solved = solve(&units, limit);
            if let Some(chosen) = &solved {
                prop_assert_eq!(chosen.len(), units.len());
                prop_assert!(total(&units, chosen).cost <= limit);
            }
            let found = solved.map(|chosen| total(&units, &chosen).loss);
            prop_assert_eq!(found, least_loss(&units, limit));
        }
    }

    #[test]
    fn a_long_front_is_thinned_and_stays_near_the_best() {
        // Costs without a common divisor, each bit of cost worth the same: the
        // best is to leave nothing of the limit, and thinning must still nearly do so.
        let units: Vec<Vec<Item>> = (0..40u64)
            .map(|u| {
                let cost = |i: u64| (u * u + 7) * 7919 + i * (1_000_003 + 977 * u);
                let item = |i| Item {
                    cost: cost(i),
                    loss: -(cost(i) as f64),
                };
                (0..4).map(item).collect()
            })
            .collect();
        let dearest: u64 = units.iter().map(|unit| unit[3].cost).sum();
        let cheapest: u64 = units.iter().map(|unit| unit[0].cost).sum();
        for limit in [cheapest, (cheapest + dearest) / 2, dearest] {
            let chosen = solve(&units, limit).expect("the cheapest fit");
            let cost = total(&units, &chosen).cost;
            assert!(
                cost <= limit && (limit - cost) as f64 <= 0.002 * limit as f64,
                "{cost} {limit}"
            );
        }
        assert_eq!(solve(&units, cheapest - 1), None);
    }
}
