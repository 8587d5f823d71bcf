//! What the operator's commands do inside a running node.
//!
//! Never signs: an order goes through a bounded queue to settlement's loop, which alone knows the
//! wallet's next nonce. Never lets an order past the duties that the settings give the key.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::control::{Answer, Command, Control, Door, Fault, serve};
use super::pause;
use super::settings::{Duties, Settings, WalletSettings};
use super::settle_loop::Orders;
use super::tasks::{Task, Tasks};
use crate::clock::Clock;
use crate::session::{PauseReason, Sessions};
use crate::settlement::{Order, OrderOutcome};

/// A running node, for its control socket.
pub(super) struct Operator {
    /// Folder of the pause's file.
    data_dir: PathBuf,
    /// The service that takes work or does not.
    sessions: Arc<Sessions>,
    /// The way to settlement; `None` for a node that is not paid.
    orders: Option<Orders>,
    /// What the key may do.
    wallet: WalletSettings,
}

#[async_trait]
impl Control for Operator {
    async fn carry_out(&self, command: Command) -> Answer {
        match command {
            Command::Pause => self.pause(true).await,
            Command::Resume => self.pause(false).await,
            Command::Status => Ok(self.status()),
            Command::Withdraw { token } => self.order(Order::Withdraw { token }).await,
            Command::Call { name, call } => self.order(Order::Call { name, call }).await,
        }
    }
}

impl Operator {
    /// For a node that is about to serve. Takes up a pause that was ordered before this start.
    pub(super) fn new(
        settings: &Settings,
        sessions: &Arc<Sessions>,
        orders: Option<Orders>,
    ) -> Self {
        if pause::is_paused(&settings.data_dir) {
            tracing::warn!("paused by the operator: no new paid work; `tally resume` ends it");
            sessions.set_paused(PauseReason::ByHand, true);
        }
        Self {
            data_dir: settings.data_dir.clone(),
            sessions: Arc::clone(sessions),
            orders,
            wallet: settings.wallet.clone(),
        }
    }

    /// Starts to listen. A node without a control socket serves all the same: commands that need
    /// it say that no node answers.
    pub(super) fn listen(self, tasks: &Tasks, clock: &Arc<dyn Clock>) -> Option<Task> {
        let door = match Door::open(&self.data_dir) {
            Ok(door) => door,
            Err(error) => {
                tracing::warn!(%error, "no control socket: orders need this node stopped");
                return None;
            }
        };
        let serving = serve(door, Arc::new(self), Arc::clone(clock), tasks.stop());
        Some(tasks.spawn("control", serving))
    }

    /// Written down before it holds, so that a restart keeps it.
    async fn pause(&self, pause: bool) -> Answer {
        let data_dir = self.data_dir.clone();
        let written = tokio::task::spawn_blocking(move || pause::write(&data_dir, pause)).await;
        let written = written.map_err(|error| Fault::new("disk", error.to_string()))?;
        written.map_err(|error| Fault::new("disk", error.to_string()))?;
        self.sessions.set_paused(PauseReason::ByHand, pause);
        tracing::info!(pause, "paused or resumed by the operator");
        Ok(self.status())
    }

    fn status(&self) -> Value {
        let pauses = self.sessions.pauses();
        let load = self.sessions.load();
        json!({
            "running": true,
            "pid": std::process::id(),
            "version": super::version::VERSION,
            "paused": !pauses.is_empty(),
            "pauses": pauses.iter().map(|reason| reason.words()).collect::<Vec<_>>(),
            "issues": self.sessions.issues(),
            "answers_running": load.running,
            "answers_queued": load.queued,
            "paid": self.orders.is_some(),
        })
    }

    async fn order(&self, order: Order) -> Answer {
        permit(&order, &self.wallet)?;
        let not_paid = || Fault::new("not_paid", "this node serves without pay: it has no wallet");
        let orders = self.orders.as_ref().ok_or_else(not_paid)?;
        let (reply, outcome) = oneshot::channel();
        orders.try_send((order, reply)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                Fault::new("busy", "too many orders wait already; try again later")
            }
            mpsc::error::TrySendError::Closed(_) => stopping(),
        })?;
        // What was signed by then is in the ledger and goes on at the next start.
        told(outcome.await.map_err(|_| stopping())?)
    }
}

fn stopping() -> Fault {
    Fault::new("stopping", "the node is stopping; what was signed goes on at its next start")
}

/// Whether the settings let the key do this.
///
/// # Errors
/// `duties`: the settings forbid it.
pub fn permit(order: &Order, wallet: &WalletSettings) -> Result<(), Fault> {
    let fault = |what: &str| Fault::new("duties", format!("wallet.duties = \"claims\": {what}"));
    match (wallet.duties, order, wallet.cold_address) {
        (Duties::All, _, _) | (Duties::Claims, Order::Withdraw { .. }, Some(_)) => Ok(()),
        (Duties::Claims, Order::Withdraw { .. }, None) => {
            Err(fault("withdrawals need wallet.cold_address"))
        }
        (Duties::Claims, Order::Call { name, .. }, _) => {
            Err(fault(&format!("{name} is not signed")))
        }
    }
}

/// An outcome as an answer.
///
/// # Errors
/// `refused`: nothing was signed. `failed`: it was mined and did not do its work.
pub fn told(outcome: OrderOutcome) -> Answer {
    match outcome {
        OrderOutcome::Final { tx, fee } => {
            Ok(json!({"tx": tx.to_string(), "fee_wei": fee.to_string()}))
        }
        OrderOutcome::Refused(why) => Err(Fault::new("refused", why)),
        OrderOutcome::Failed(why) => Err(Fault::new("failed", why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::Call;
    use crate::units::Address;

    #[test]
    fn a_key_with_claims_for_its_duties_signs_withdrawals_to_the_cold_address_only() {
        let withdraw = Order::Withdraw { token: Address::ZERO };
        let call = Order::Call { name: "registerNode".into(), call: Call::Nothing };
        let cold = Some(Address::new([1; 20]));
        let table = [
            (Duties::All, None, true, true),
            (Duties::All, cold, true, true),
            (Duties::Claims, None, false, false),
            (Duties::Claims, cold, true, false),
        ];
        for (duties, cold_address, may_withdraw, may_call) in table {
            let wallet = WalletSettings { cold_address, duties, ..WalletSettings::default() };
            let is_permitted = |order| match permit(order, &wallet) {
                Ok(()) => true,
                Err(fault) => {
                    assert_eq!(fault.code, "duties");
                    false
                }
            };
            assert_eq!(is_permitted(&withdraw), may_withdraw, "{wallet:?}");
            assert_eq!(is_permitted(&call), may_call, "{wallet:?}");
        }
    }
}
