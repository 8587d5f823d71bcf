//! The loop that drives settlement: time, enough to claim, or an order of the operator.
//!
//! Never decides anything about money. A stop ends it at once, wherever it waits: what settlement
//! had to append is with the ledger's writer, which finishes by itself, and what it had to send is
//! in the ledger.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::session::Tracker;
use crate::settlement::{Order, OrderOutcome, Settlement, SettlementError};

/// Orders that may wait to be heard; whoever sends one more waits.
const ORDERS_MAX: usize = 8;

/// An order and whoever waits for its end.
pub(super) type PlacedOrder = (Order, oneshot::Sender<OrderOutcome>);

/// Where orders are given.
pub(super) type Orders = mpsc::Sender<PlacedOrder>;

/// A channel for orders.
pub(super) fn orders() -> (Orders, mpsc::Receiver<PlacedOrder>) {
    mpsc::channel(ORDERS_MAX)
}

/// What makes settlement look at the chain.
pub(super) struct Pulse {
    pub clock: Arc<dyn Clock>,
    /// Longest pause between two looks.
    pub poll: Duration,
    pub tracker: Arc<Tracker>,
    pub orders: mpsc::Receiver<PlacedOrder>,
}

impl Pulse {
    /// Waits for a reason to look; an order is one.
    async fn beat(&mut self) -> Option<PlacedOrder> {
        tokio::select! {
            biased;
            Some(order) = self.orders.recv() => Some(order),
            () = self.tracker.claim_due() => None,
            () = self.clock.sleep(self.poll) => None,
        }
    }
}

/// Runs until `stop`, or until the ledger fails.
///
/// # Errors
/// [`SettlementError`].
pub(super) async fn run(
    mut settlement: Settlement,
    mut pulse: Pulse,
    stop: CancellationToken,
) -> Result<(), SettlementError> {
    while let Some(order) = stop.run_until_cancelled(pulse.beat()).await {
        if let Some((order, reply)) = order {
            settlement.place(order, reply);
        }
        match stop.run_until_cancelled(settlement.tick()).await {
            Some(ticked) => ticked?,
            None => break,
        }
    }
    Ok(())
}
