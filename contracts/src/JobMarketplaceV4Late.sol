// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {JobMarketplaceV4} from "./JobMarketplaceV4.sol";
import {Session, Wiring} from "./marketplace/Sessions.sol";

/// @title Paid sessions, version v4 as it ended: 2000 tokens a second, prices in thousandths
/// @notice A stand-in for development and tests, written from docs/spec/contract.md. Nothing but
/// `PRICE_PRECISION` tells it from v4 as it began.
contract JobMarketplaceV4Late is JobMarketplaceV4 {
    /// @notice Parts of a payment unit in which prices are given: payment = tokens × price / 1000,
    /// rounded down.
    uint256 public constant PRICE_PRECISION = 1000;

    constructor(Wiring memory wiring) JobMarketplaceV4(wiring) {}

    function _pricePrecision() internal pure override returns (uint256) {
        return PRICE_PRECISION;
    }

    function _rate(Session storage) internal pure override returns (uint256) {
        return 2000;
    }
}
