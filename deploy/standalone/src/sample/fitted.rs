//! What was fitted to the real trace: how large requests are and how they come.
//!
//! Source: Azure LLM inference trace 2023, coding assistant (Patel et al.,
//! *Splitwise*, ISCA 2024, CC-BY 4.0): 8,819 requests of 57 minutes with
//! `ContextTokens` (input) and `GeneratedTokens` (output).
//!
//! **Input** is a Weibull variable cut at the context limit of that service,
//! fitted by maximum likelihood with the values from 7,434 on taken as censored
//! (they are 3.8 % of the trace; the fit gives 3.8 %):
//! `min(7437, 2070 · E^(1/0.925))`, E exponential.
//!
//! **Output** is a shifted log-normal variable, fitted by maximum likelihood on
//! whole tokens: `5.49 + exp(2.06 + 1.42 · Z)`, at most 1,899 as in the trace.
//!
//! | quantile | 5 % | 10 % | 25 % | 50 % | 75 % | 90 % | 95 % | 99 % | mean |
//! | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
//! | input, trace | 75 | 147 | 578 | 1469 | 2744 | 5188 | 7303 | 7436 | 2048 |
//! | input, fit | 83 | 182 | 538 | 1393 | 2947 | 5100 | 6778 | 7437 | 2054 |
//! | output, trace | 6 | 7 | 9 | 13 | 24 | 55 | 90 | 251 | 27.9 |
//! | output, fit | 6 | 7 | 9 | 13 | 26 | 54 | 87 | 219 | 26.8 |
//!
//! The greatest distance between the distributions (Kolmogorov-Smirnov) is 0.036
//! for the input and 0.038 for the output. A plain log-normal fits the input
//! badly: it puts the median at 1,095 and a tenth of all requests over the limit.
//!
//! **Correlation**: the rank correlation of the two is -0.02 (normal scores
//! -0.013, standard error 0.011): none to speak of, so they are drawn apart.
//!
//! **Arrivals** are far burstier than a Poisson process: the variance of the
//! counts, less their mean, over the mean squared is v₁ = 4.748 a second, v₁₀ =
//! 2.763 per ten seconds and v₆₀ = 1.077 a minute. A cascade of gamma variables of
//! mean 1 (one a minute, times one per ten seconds, times one a second) with the
//! variances a, b and c has the same three figures where
//!
//! ```text
//! (1 + a) (1 + b) (1 + c)                          = 1 + v₁
//! (1 + a) (1 + b) (1 + c/10)                       = 1 + v₁₀
//! (1 + a) (1 + ((1 + b) (1 + c/10) - 1) / 6)       = 1 + v₆₀
//! ```
//!
//! that is a = 0.740, b = 1.036 and c = 0.623; a shape is 1 over the variance. The
//! figures stay when the process is thinned from the trace's 152 requests a minute
//! to what a demo wants.
//!
//! To work all of this out again: quantiles, means and counts come straight from
//! the file's columns and the differences to its first timestamp; the likelihoods
//! are maximised on a grid (shape by 0.005, scale by 10; μ and σ by 0.02).

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp1, StandardNormal};

/// Weibull shape of the input tokens.
pub const INPUT_SHAPE: f64 = 0.925;
/// Weibull scale of the input tokens.
pub const INPUT_SCALE: f64 = 2070.0;
/// The trace's context limit.
pub const INPUT_MAX: f64 = 7437.0;
/// Shift of the output tokens.
pub const OUTPUT_SHIFT: f64 = 5.49;
/// Mean of the logarithm of the shifted output tokens.
pub const OUTPUT_MU: f64 = 2.06;
/// Deviation of the logarithm of the shifted output tokens.
pub const OUTPUT_SIGMA: f64 = 1.42;
/// The trace's longest output.
pub const OUTPUT_MAX: f64 = 1899.0;
/// Gamma shapes of the cascade: a minute, ten seconds, a second.
pub const BURST_SHAPES: [f64; 3] = [1.352, 0.965, 1.606];

/// The input and the visible output of one request, in tokens.
pub fn sizes(rng: &mut ChaCha8Rng) -> (i64, i64) {
    let exponential: f64 = Exp1.sample(rng);
    let input = (INPUT_SCALE * exponential.powf(1.0 / INPUT_SHAPE)).round().clamp(1.0, INPUT_MAX);
    let normal: f64 = StandardNormal.sample(rng);
    let output = (OUTPUT_SHIFT + (OUTPUT_MU + OUTPUT_SIGMA * normal).exp()).round().clamp(1.0, OUTPUT_MAX);
    // Both are whole numbers below 8,000.
    (input as i64, output as i64)
}

/// When `count` requests come: microseconds from the start, ascending, within
/// `seconds` (whole tens of them). `rhythm` weighs each minute (its index from the
/// start).
///
/// This is the cascade above, conditioned on its total: the counts of disjoint
/// spans are multinomial in their weights. The ten gamma variables of a cell are
/// drawn only where something comes: their sum is a gamma variable of ten times
/// the shape, and their shares in it are independent of it.
pub fn arrivals(rng: &mut ChaCha8Rng, seconds: usize, count: usize, rhythm: impl Fn(usize) -> f64) -> Vec<i64> {
    let [per_minute, per_ten, per_second] = BURST_SHAPES;
    let mut edges = Vec::with_capacity(seconds / 10);
    let (mut sum, mut minute) = (0.0, 1.0);
    for ten in 0..seconds / 10 {
        if ten % 6 == 0 {
            minute = gamma(rng, per_minute) * rhythm(ten / 6);
        }
        sum += minute * gamma(rng, per_ten) * gamma(rng, 10.0 * per_second);
        edges.push(sum);
    }
    let Some(last) = edges.len().checked_sub(1) else {
        return Vec::new();
    };
    let mut cells: Vec<usize> = (0..count)
        .map(|_| {
            let point = rng.random_range(0.0..sum);
            edges.partition_point(|edge| *edge <= point).min(last)
        })
        .collect();
    cells.sort_unstable();

    let mut times = Vec::with_capacity(count);
    for cell in cells.chunk_by(|a, b| a == b) {
        let mut sum = 0.0;
        let edges: [f64; 10] = std::array::from_fn(|_| {
            sum += gamma(rng, per_second);
            sum
        });
        for ten in cell {
            let point = rng.random_range(0.0..sum);
            let second = ten * 10 + edges.partition_point(|edge| *edge <= point).min(9);
            times.push(second as i64 * 1_000_000 + rng.random_range(0..1_000_000));
        }
    }
    times.sort_unstable();
    times
}

/// A gamma variable of mean 1 (Marsaglia and Tsang 2000; below shape 1 by their
/// own boost).
fn gamma(rng: &mut ChaCha8Rng, shape: f64) -> f64 {
    let (boosted, boost) = if shape < 1.0 {
        let uniform: f64 = 1.0 - rng.random::<f64>();
        (shape + 1.0, uniform.powf(1.0 / shape))
    } else {
        (shape, 1.0)
    };
    let d = boosted - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x: f64 = StandardNormal.sample(rng);
        let v = (1.0 + c * x).powi(3);
        if v <= 0.0 {
            continue;
        }
        let uniform: f64 = 1.0 - rng.random::<f64>();
        if uniform.ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v * boost / shape;
        }
    }
}
