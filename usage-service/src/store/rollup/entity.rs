//! The tables of rollups as sea-orm entities.

#![expect(unreachable_pub, reason = "sea-orm's derives make items of the visibility of the model, and want pub")]

/// `usage_values`: texts by their ids.
pub(super) mod value {
    use sea_orm::entity::prelude::*;

    #[sea_orm::model]
    #[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "usage_values")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub dimension: i16,
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: i32,
        pub value: String,
    }

    impl ActiveModelBehavior for ActiveModel {}
}

/// `usage_spans`: which segments there are, and which version wrote them.
pub(super) mod span {
    use sea_orm::entity::prelude::*;

    #[sea_orm::model]
    #[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "usage_spans")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub level: i16,
        #[sea_orm(primary_key, auto_increment = false)]
        pub start_us: i64,
        #[sea_orm(primary_key, auto_increment = false)]
        pub instance: i32,
        pub version: i64,
    }

    impl ActiveModelBehavior for ActiveModel {}
}

/// `usage_segments`: a section of a segment.
pub(super) mod segment {
    use sea_orm::entity::prelude::*;

    #[sea_orm::model]
    #[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "usage_segments")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub level: i16,
        #[sea_orm(primary_key, auto_increment = false)]
        pub cut: i16,
        #[sea_orm(primary_key, auto_increment = false)]
        pub start_us: i64,
        #[sea_orm(primary_key, auto_increment = false)]
        pub instance: i32,
        pub data: Vec<u8>,
    }

    impl ActiveModelBehavior for ActiveModel {}
}
