//! What entries of the service's own tell of, stored in the transaction of the entry.

use service_core::error::Result;

use super::write::{Bind, Transaction};
use super::{NewHold, Release, signed};

/// What an entry tells of.
#[derive(Debug)]
pub enum Told<'a> {
    /// A segment that is in the archive: its entries may be removed from now on.
    Segment(&'a NewSegment),
    /// A hold that was placed.
    Hold(&'a NewHold),
    /// A hold that was released.
    Release(&'a Release),
}

/// A segment that was written, read back and verified.
#[derive(Debug)]
pub struct NewSegment {
    /// Of which log.
    pub instance_id: String,
    /// First sequence.
    pub first: u64,
    /// First sequence behind.
    pub end: u64,
    /// When its first and last entries occurred.
    pub occurred_us: (i64, i64),
    /// Its name in the archive.
    pub place: String,
    /// Bytes of the object with the lines.
    pub data_bytes: u64,
    /// SHA-256 of that object.
    pub data_sha256: [u8; 32],
    /// SHA-256 of the lines.
    pub lines_sha256: [u8; 32],
    /// SHA-256 of the manifest.
    pub manifest_sha256: [u8; 32],
}

impl Transaction {
    /// Stores what the entry with this sequence tells; false where it is not so any more.
    pub(super) async fn tell(&mut self, told: &Told<'_>, sequence: u64, now_us: i64) -> Result<bool> {
        match told {
            Told::Segment(segment) => self.tell_segment(segment, sequence, now_us).await,
            Told::Hold(hold) => self.tell_hold(hold, sequence, now_us).await,
            Told::Release(release) => self.tell_release(release, sequence, now_us).await,
        }
    }

    /// The horizon moves from where the segment begins, or not at all: the log's head is locked.
    async fn tell_segment(&mut self, segment: &NewSegment, sequence: u64, now_us: i64) -> Result<bool> {
        let instance = Bind::Text(&segment.instance_id);
        let (first, end) = (Bind::Int(signed(segment.first)), Bind::Int(signed(segment.end)));
        let known = self
            .run(
                "UPDATE audit_log_heads SET planned_through = planned_through \
                 WHERE instance_id = $1 AND archived_through = $2",
                &[instance, first],
            )
            .await?;
        if known != 1 {
            return Ok(false);
        }
        self.run(
            "INSERT INTO audit_segments (instance_id, first_sequence, end_sequence, recorded_sequence, archived_at, \
             first_occurred_at, last_occurred_at, place, data_bytes, data_sha256, lines_sha256, manifest_sha256) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
            &[
                instance,
                first,
                end,
                Bind::Int(signed(sequence)),
                Bind::Int(now_us),
                Bind::Int(segment.occurred_us.0),
                Bind::Int(segment.occurred_us.1),
                Bind::Text(&segment.place),
                Bind::Int(signed(segment.data_bytes)),
                Bind::Bytes(&segment.data_sha256),
                Bind::Bytes(&segment.lines_sha256),
                Bind::Bytes(&segment.manifest_sha256),
            ],
        )
        .await?;
        let kept_from = Bind::Int(segment.occurred_us.1.saturating_add(1));
        self.run(
            "UPDATE audit_log_heads SET archived_through = $2, planned_through = $2, \
             kept_from = CASE WHEN kept_from > $3 THEN kept_from ELSE $3 END WHERE instance_id = $1",
            &[instance, end, kept_from],
        )
        .await?;
        self.run(
            "INSERT INTO audit_sweeps (instance_id, swept_through) VALUES ($1, 0) ON CONFLICT DO NOTHING",
            &[instance],
        )
        .await?;
        Ok(true)
    }

    /// Behind whoever removes at this moment, and before whoever does next.
    async fn tell_hold(&mut self, hold: &NewHold, sequence: u64, now_us: i64) -> Result<bool> {
        let instance = Bind::Text(&hold.instance_id);
        self.lock_sweep(instance).await?;
        self.run(
            "INSERT INTO audit_legal_holds (hold_id, instance_id, first_sequence, end_sequence, start_us, end_us, \
             filter, reason, placed_at, placed_by, placed_sequence) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
            &[
                Bind::Id(hold.hold_id),
                instance,
                Bind::Int(signed(hold.sequences.start)),
                Bind::Int(signed(hold.sequences.end)),
                Bind::Int(hold.occurred_us.start_us),
                Bind::Int(hold.occurred_us.end_us),
                Bind::Text(&hold.filter_text()?),
                Bind::Text(&hold.reason),
                Bind::Int(now_us),
                Bind::Text(&hold.placed_by),
                Bind::Int(signed(sequence)),
            ],
        )
        .await?;
        Ok(true)
    }

    /// What was held is removed again from the beginning: only what is held is left there.
    async fn tell_release(&mut self, release: &Release, sequence: u64, now_us: i64) -> Result<bool> {
        let instance = Bind::Text(&release.instance_id);
        self.lock_sweep(instance).await?;
        let released = self
            .run(
                "UPDATE audit_legal_holds SET released_at = $2, released_by = $3, released_sequence = $4, \
                 release_reason = $5 WHERE hold_id = $1 AND released_at IS NULL",
                &[
                    Bind::Id(release.hold_id),
                    Bind::Int(now_us),
                    Bind::Text(&release.released_by),
                    Bind::Int(signed(sequence)),
                    Bind::Text(&release.reason),
                ],
            )
            .await?;
        self.run("UPDATE audit_sweeps SET swept_through = 0 WHERE instance_id = $1", &[instance]).await?;
        Ok(released == 1)
    }

    async fn lock_sweep(&mut self, instance: Bind<'_>) -> Result<()> {
        self.run(
            "INSERT INTO audit_sweeps (instance_id, swept_through) VALUES ($1, 0) \
             ON CONFLICT (instance_id) DO UPDATE SET instance_id = excluded.instance_id",
            &[instance],
        )
        .await?;
        Ok(())
    }
}
