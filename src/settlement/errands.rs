//! The wallet's own business on the one nonce line: withdrawals, forwards, calls of the operator.
//!
//! Never forwards more than was withdrawn for that address, and never twice: what is due follows
//! from the ledger, so a restart between the two halves goes on with the second. Where nobody waits
//! for an order any more, it still runs to its end.

use std::collections::{BTreeMap, VecDeque};

use tokio::sync::oneshot;

use super::lifecycle::gas_reserve;
use super::{Settlement, StepError, View};
use crate::billing::{Errand, ErrandKind, Purpose, RejectReason, Tx};
use crate::chain::Call;
use crate::units::{Address, Amount, TxHash, WalletNonce};

/// Orders that may wait; one more is refused.
const ORDERS_MAX: usize = 8;

/// What the operator asks of the wallet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Everything earned in `token` (zero: native) to the wallet, and on to the cold address where
    /// one is set.
    Withdraw {
        /// The currency.
        token: Address,
    },
    /// A call, such as one to the node registry.
    Call {
        /// Its name, for reports.
        name: String,
        /// The call.
        call: Call,
    },
}

/// What became of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderOutcome {
    /// Its last transaction is final.
    Final {
        /// That transaction.
        tx: TxHash,
        /// What it cost, wei.
        fee: Amount,
    },
    /// Nothing was signed, for this reason.
    Refused(String),
    /// It was mined and did not do its work, or its nonce went to another.
    Failed(String),
}

type Reply = oneshot::Sender<OrderOutcome>;

/// Orders and those who wait for them. Lost at a restart, but for what the ledger holds.
#[derive(Default)]
pub(super) struct Desk {
    waiting: VecDeque<(Order, Reply)>,
    /// By the nonce of the transaction that ends the order.
    pending: BTreeMap<WalletNonce, Vec<Reply>>,
    /// Withdrawals whose forward is still to be signed, by currency.
    forwards: BTreeMap<Address, Vec<Reply>>,
}

impl Settlement {
    /// Takes an order; the next passes carry it out. `reply` is answered when it is final.
    pub fn place(&mut self, order: Order, reply: Reply) {
        if self.desk.waiting.len() >= ORDERS_MAX {
            answer(reply, OrderOutcome::Refused("too many orders wait already".into()));
            return;
        }
        self.desk.waiting.push_back((order, reply));
    }

    /// Whether an order waits, or a transaction of the wallet's own is not final.
    #[must_use]
    pub fn has_errands(&self) -> bool {
        let wallet = self.books.tracker.wallet();
        !self.desk.waiting.is_empty()
            || wallet.txs().open().next().is_some()
            || !wallet.to_forward().is_empty()
    }

    /// One pass over the wallet's business: forwards first, then one order.
    pub(super) async fn run_errands(&mut self, view: &View) -> Result<(), StepError> {
        self.forward(view).await?;
        if self.is_sweep {
            self.withdraw_above_threshold();
        }
        let Some((order, reply)) = self.desk.waiting.pop_front() else { return Ok(()) };
        let signed = self.carry_out(&order, view).await;
        match signed {
            Ok(Ok(nonce)) => drop(self.desk.pending.insert(nonce, vec![reply])),
            Ok(Err(why)) => answer(reply, OrderOutcome::Refused(why)),
            // Nothing is known to have been signed: tried again when the chain answers.
            Err(error) => {
                self.desk.waiting.push_front((order, reply));
                return Err(error);
            }
        }
        Ok(())
    }

    async fn carry_out(
        &mut self,
        order: &Order,
        view: &View,
    ) -> Result<Result<WalletNonce, String>, StepError> {
        match order {
            Order::Withdraw { token } => self.withdraw(*token, view).await,
            Order::Call { name, call } => {
                let kind = ErrandKind::Registry { name: name.clone() };
                self.run_call(kind, call.clone(), view).await
            }
        }
    }

    async fn withdraw(
        &mut self,
        token: Address,
        view: &View,
    ) -> Result<Result<WalletNonce, String>, StepError> {
        if self.is_withdrawing(token) {
            return Ok(Err(format!("a withdrawal of {token} is on its way already")));
        }
        let amount = self.chain.earnings(token).await?;
        if amount == Amount::ZERO {
            return Ok(Err(format!("nothing is earned in {token}")));
        }
        let cold = self.rules.cold_address;
        let call = self.chain.withdrawal(token, amount);
        self.run_call(ErrandKind::Withdraw { token, amount, cold }, call, view).await
    }

    fn is_withdrawing(&self, token: Address) -> bool {
        let wallet = self.books.tracker.wallet();
        let of = |tx: &Tx| {
            matches!(&tx.purpose, Purpose::Errand(errand)
            if matches!(&errand.kind, ErrandKind::Withdraw { token: of, .. } if *of == token))
        };
        wallet.txs().open().any(of)
    }

    /// Signs what was withdrawn on to its cold address. Native money must leave gas behind, for the
    /// transfer itself and for claims: it waits until the wallet has both.
    async fn forward(&mut self, view: &View) -> Result<(), StepError> {
        let due = self.books.tracker.wallet().to_forward();
        if due.is_empty() {
            return Ok(());
        }
        let mut left = view.wallet.balance.saturating_sub(gas_reserve(self.market(view).await?));
        for ((token, cold), amount) in due {
            if token == Address::ZERO {
                let Some(rest) = left.checked_sub(amount) else {
                    tracing::warn!(%amount, "not forwarded: the wallet needs the rest for gas");
                    continue;
                };
                left = rest;
            }
            let call = self.chain.transfer(token, cold, amount);
            let kind = ErrandKind::Forward { token, amount, cold };
            match self.run_call(kind, call, view).await? {
                Ok(nonce) => {
                    let waiting = self.desk.forwards.remove(&token).unwrap_or_default();
                    self.desk.pending.insert(nonce, waiting);
                }
                Err(words) => tracing::warn!(%token, words, "the chain would refuse the forward"),
            }
        }
        Ok(())
    }

    /// Orders a withdrawal wherever more is earned than the operator wants to leave there.
    fn withdraw_above_threshold(&mut self) {
        for (token, threshold) in self.rules.withdraw_above.clone() {
            let earned = self.earned.get(&token).copied().unwrap_or_default();
            let is_ordered =
                self.desk.waiting.iter().any(
                    |(order, _)| matches!(order, Order::Withdraw { token: of } if *of == token),
                );
            if earned >= threshold && !is_ordered && !self.is_withdrawing(token) {
                // Nobody waits for an automatic one.
                let (reply, _) = oneshot::channel();
                self.place(Order::Withdraw { token }, reply);
            }
        }
    }

    /// Reads what is earned, for the thresholds.
    pub(super) async fn read_earnings(&mut self) -> Result<(), StepError> {
        for token in self.rules.withdraw_above.clone().into_keys() {
            let earned = self.chain.earnings(token).await?;
            self.earned.insert(token, earned);
        }
        Ok(())
    }

    async fn run_call(
        &mut self,
        kind: ErrandKind,
        call: Call,
        view: &View,
    ) -> Result<Result<WalletNonce, String>, StepError> {
        let Call::Raw { to, value, input } = call else {
            return Ok(Err("only calls of other contracts can be ordered".into()));
        };
        let purpose = Purpose::Errand(Errand { kind, to, value, input });
        self.sign_own(None, purpose, view).await
    }

    /// A transaction of the wallet reached its end: whoever waits for it is told, or for what
    /// follows from it.
    pub(super) fn errand_over(
        &mut self,
        nonce: WalletNonce,
        end: Result<(TxHash, Amount), RejectReason>,
    ) {
        let Some(replies) = self.desk.pending.remove(&nonce) else { return };
        let (tx, fee) = match end {
            Ok(mined) => mined,
            Err(reason) => {
                let failed = || OrderOutcome::Failed(words(reason).into());
                return replies.into_iter().for_each(|reply| answer(reply, failed()));
            }
        };
        let wallet = self.books.tracker.wallet();
        let purpose = wallet.txs().at(nonce).map(|tx| tx.purpose.clone());
        if let Some(Purpose::Errand(errand)) = purpose
            && let ErrandKind::Withdraw { token, cold: Some(_), .. } = errand.kind
        {
            self.desk.forwards.entry(token).or_default().extend(replies);
            return;
        }
        let done = || OrderOutcome::Final { tx, fee };
        replies.into_iter().for_each(|reply| answer(reply, done()));
    }
}

const fn words(reason: RejectReason) -> &'static str {
    match reason {
        RejectReason::Reverted => "it was mined and reverted",
        RejectReason::NonceTaken => "a transaction signed elsewhere took its nonce",
        RejectReason::Cancelled => "it was cancelled",
    }
}

/// Whoever ordered may have gone.
fn answer(reply: Reply, outcome: OrderOutcome) {
    drop(reply.send(outcome));
}
