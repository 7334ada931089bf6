//! The price book over gRPC.

use activity_proto::usage::v1::{EstimateCostRequest, ListPricesRequest, PriceSource, Tokens};
use service_core::server::exit_code;

use crate::harness::{Service, config, refusal};

#[tokio::test]
async fn all_prices_are_listed_page_by_page_in_order() {
    let mut service = Service::start().await;
    let mut request = ListPricesRequest { page_size: 1_000, ..Default::default() };
    let mut listed = Vec::new();
    loop {
        let page = service.prices.list_prices(request.clone()).await.unwrap().into_inner();
        assert!(!page.book_version.is_empty() && page.currency_code == "USD");
        listed.extend(page.models.into_iter().map(|model| (model.provider, model.model)));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert!(listed.len() > 2_000, "{}", listed.len());
    assert!(listed.is_sorted_by(|a, b| a < b));

    let request = ListPricesRequest {
        providers: vec!["openai".into()],
        model_contains: "GPT-4O-mini".into(),
        ..Default::default()
    };
    let page = service.prices.list_prices(request).await.unwrap().into_inner();
    assert!(page.models.iter().any(|model| model.model == "gpt-4o-mini"));
    assert!(page.models.iter().all(|model| model.provider == "openai" && !model.prices.is_empty()));
}

#[tokio::test]
async fn an_estimate_shows_its_lines() {
    let mut service = Service::start().await;
    let request = EstimateCostRequest {
        provider: "openai".into(),
        model: "gpt-4o".into(),
        tokens: Some(Tokens { input_uncached: Some(1_000), output: Some(10), ..Default::default() }),
        ..Default::default()
    };
    let answer = service.prices.estimate_cost(request.clone()).await.unwrap().into_inner();
    assert_eq!(answer.cost.as_deref(), Some("0.0026"));
    let lines: Vec<_> = answer
        .lines
        .iter()
        .map(|line| (line.unit.as_str(), line.quantity.unwrap(), line.price.as_str(), line.amount.as_str()))
        .collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines.contains(&("input_mtok", 1_000, "2.5", "0.0025")), "{lines:?}");
    assert!(lines.contains(&("output_mtok", 10, "10", "0.0001")), "{lines:?}");

    let unknown = EstimateCostRequest { model: "no-such".into(), ..request.clone() };
    let answer = service.prices.estimate_cost(unknown).await.unwrap().into_inner();
    assert_eq!((answer.cost, answer.price), (None, None));
    assert!(!answer.unpriced_reason.is_empty());

    let empty = EstimateCostRequest { tokens: None, ..request.clone() };
    let status = service.prices.estimate_cost(empty).await.unwrap_err();
    assert_eq!(refusal(&status), ("REQUIRED".into(), "tokens".into()));

    let wrong = EstimateCostRequest { provider: String::new(), ..request };
    let status = service.prices.estimate_cost(wrong).await.unwrap_err();
    assert_eq!(refusal(&status), ("REQUIRED".into(), "provider".into()));
}

const OWN: &str = r#"{"providers":[{"provider":"openai","models":[
  {"id":"gpt-4o","prices":[{"per":{"input_mtok":"1"}}]}
]}]}"#;

#[tokio::test]
async fn a_deployments_own_prices_come_first_and_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prices.json");
    std::fs::write(&file, OWN).unwrap();
    let with_own = usage_service::Config { prices_file: Some(file.clone()), ..config(&folder) };
    let mut service = Service::start_as(with_own.clone(), tempfile::tempdir().unwrap()).await;
    let request = ListPricesRequest {
        providers: vec!["openai".into()],
        model_contains: "gpt-4o".into(),
        page_size: 1_000,
        ..Default::default()
    };
    let page = service.prices.list_prices(request).await.unwrap().into_inner();
    for model in &page.models {
        let own = model.model == "gpt-4o";
        assert_eq!(model.source() == PriceSource::Deployment, own, "{}", model.model);
    }
    let request = EstimateCostRequest {
        provider: "openai".into(),
        model: "gpt-4o".into(),
        tokens: Some(Tokens { input_uncached: Some(1_000), ..Default::default() }),
        ..Default::default()
    };
    let answer = service.prices.estimate_cost(request).await.unwrap().into_inner();
    assert_eq!(answer.cost.as_deref(), Some("0.001"));

    // A file that cannot be read as prices is a configuration that is refused.
    std::fs::write(&file, "[").unwrap();
    let error = usage_service::bind(with_own).await.unwrap_err();
    assert_eq!(exit_code(&error), 64, "{error:#}");
}
