//! Prices and estimates.

use std::collections::BTreeMap;

use activity_proto::usage::v1 as proto;
use service_core::clock;
use service_core::error::{Error, Reason, Result};

use super::event;
use crate::ingest::{book_tokens, price_names};
use crate::money;
use crate::pricing::{self, Estimate, ListPrice, Model, Provider, Rate, Unpriced, Usage, Window};

/// A model and all of its prices.
pub(crate) fn model_prices(provider: &Provider, model: &Model) -> proto::ModelPrices {
    let standard = model.prices.iter().map(|ListPrice { window, rates }| price(window, BTreeMap::new(), rates));
    let variants = model.variants.iter().map(|variant| price(&variant.window, variant.when.clone(), &variant.rates));
    proto::ModelPrices {
        provider: provider.id.to_string(),
        model: model.id.to_string(),
        source: match model.is_own {
            true => proto::PriceSource::Deployment.into(),
            false => proto::PriceSource::Default.into(),
        },
        prices: standard.chain(variants).collect(),
    }
}

fn price(window: &Window, conditions: BTreeMap<String, String>, rates: &[Rate]) -> proto::Price {
    // `00:30:00-16:30:00`
    let daily = window.daily.map(|daily| daily.to_string()).unwrap_or_default();
    let (daily_from, daily_until) = daily.split_once('-').unwrap_or_default();
    proto::Price {
        effective_from: window
            .effective_from
            .map(|day| clock::to_timestamp(day.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_micros())),
        daily_from: daily_from.to_owned(),
        daily_until: daily_until.to_owned(),
        conditions,
        rates: rates.iter().flat_map(rate).collect(),
    }
}

/// The price, and a line for each tier above it.
fn rate(rate: &Rate) -> impl Iterator<Item = proto::Rate> {
    let line = |price: pricing::Price, above_input_tokens| proto::Rate {
        unit: rate.unit.price_key.to_string(),
        price: price.to_string(),
        above_input_tokens,
    };
    let tiers = rate.tiers.iter();
    std::iter::once(line(rate.base, None)).chain(tiers.map(move |tier| line(tier.price, Some(tier.above_input_tokens))))
}

/// The request to price, checked as an event is.
pub(crate) fn estimate_usage(request: &proto::EstimateCostRequest, now_us: i64) -> Result<Usage<'_>> {
    for (field, value) in [("provider", &request.provider), ("model", &request.model)] {
        if value.is_empty() {
            return Err(Error::required(field));
        }
        event::text(field, value)?;
    }
    event::text("service_tier", &request.service_tier)?;
    event::text("processing", &request.processing)?;
    event::other_units(&request.other_units)?;
    event::price_conditions(&request.price_conditions)?;
    let occurred_at_us = match &request.occurred_at {
        Some(at) => clock::from_timestamp("occurred_at", at)?,
        None => now_us,
    };
    if request.tokens.is_none() && request.other_units.is_empty() {
        let message = "tokens is required where there are no other_units";
        return Err(Error::invalid_because(Reason::Required, "tokens", message));
    }
    let tokens = book_tokens(&event::tokens(request.tokens.as_ref())?);
    Ok(Usage {
        provider: &request.provider,
        model: &request.model,
        occurred_at_us,
        service_tier: &request.service_tier,
        processing: &request.processing,
        tokens,
    })
}

/// What it would cost, or why that is not known.
pub(crate) fn estimate(estimate: Result<Estimate, Unpriced>) -> proto::EstimateCostResponse {
    let mut response = proto::EstimateCostResponse { currency_code: money::CURRENCY.to_owned(), ..Default::default() };
    match estimate {
        Err(unpriced) => response.unpriced_reason = unpriced.to_string(),
        Ok(estimate) => {
            let (provider, model) = price_names(&estimate.price_id);
            response.price = Some(proto::AppliedPrice {
                book_version: estimate.book_version.to_string(),
                provider: provider.to_owned(),
                model: model.to_owned(),
                detail: estimate.tier.to_string(),
            });
            response.cost = Some(money::text(estimate.total_nanos.into()));
            response.lines = estimate
                .lines
                .into_iter()
                .map(|line| proto::CostLine {
                    unit: line.unit.price_key.to_string(),
                    quantity: Some(line.quantity),
                    price: line.price.map_or_else(|| "0".to_owned(), |price| price.to_string()),
                    above_input_tokens: line.above_input_tokens,
                    amount: line.amount.to_string(),
                })
                .collect();
        }
    }
    response
}
