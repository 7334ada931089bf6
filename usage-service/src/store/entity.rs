//! The tables as sea-orm entities.

#![expect(unreachable_pub, reason = "sea-orm's derives make items of the visibility of the model, and want pub")]

/// `usage_requests`: one row for each request.
pub(super) mod request {
    use sea_orm::entity::prelude::*;

    #[sea_orm::model]
    #[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "usage_requests")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        pub occurred_at: i64,
        pub recorded_at: i64,
        pub commit_number: i64,
        pub instance_id: String,
        pub user_id: String,
        pub team_id: String,
        pub api_key_id: String,
        pub provider: String,
        pub requested_model: String,
        pub model: String,
        pub status: i16,
        pub operation: String,
        pub input_uncached: i32,
        pub input_cache_read: i32,
        pub input_cache_write: i32,
        pub input_cache_write_1h: i32,
        pub output: i32,
        pub output_reasoning: i32,
        pub other_units: String,
        pub latency_us: Option<i64>,
        pub time_to_first_token_us: Option<i64>,
        pub service_tier: String,
        pub processing: String,
        pub request_id: String,
        pub labels: String,
        pub price_conditions: String,
        pub cost_nanos: Option<i64>,
        pub charge_ref: i64,
        pub producer_ref: Option<i64>,
        pub producer_sequence: Option<i64>,
        pub content_hash: Vec<u8>,
        pub recorded_by: String,
        #[sea_orm(belongs_to, from = "charge_ref", to = "id")]
        pub charge: HasOne<super::charge::Entity>,
        #[sea_orm(belongs_to, from = "producer_ref", to = "id")]
        pub producer: HasOne<super::producer::Entity>,
    }

    impl ActiveModelBehavior for ActiveModel {}
}

/// `usage_charges`: the price that made a cost, or why there is none.
pub(super) mod charge {
    use sea_orm::entity::prelude::*;

    #[sea_orm::model]
    #[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "usage_charges")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: i64,
        pub book_version: String,
        pub provider: String,
        pub model: String,
        pub detail: String,
        pub unpriced_reason: String,
    }

    impl ActiveModelBehavior for ActiveModel {}
}

/// `usage_producers`: an SDK instance and one of its epochs.
pub(super) mod producer {
    use sea_orm::entity::prelude::*;

    #[sea_orm::model]
    #[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "usage_producers")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: i64,
        pub producer_id: String,
        pub epoch: i64,
    }

    impl ActiveModelBehavior for ActiveModel {}
}
