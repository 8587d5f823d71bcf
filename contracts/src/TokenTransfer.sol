// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @notice The part of ERC-20 that the contracts here use.
interface IERC20 {
    function transfer(address to, uint256 amount) external returns (bool);
    function transferFrom(address from, address to, uint256 amount) external returns (bool);
    function balanceOf(address account) external view returns (uint256);
}

/// @title Moving ERC-20 units so that a failure is never taken for success
/// @dev Some tokens return false, some revert, some return nothing: only a call that succeeded
/// and returned nothing or true counts as paid. An address without code is no token.
library TokenTransfer {
    /// @notice Pushes `amount` units of `token` to `to`, or reverts with `failure`.
    function push(address token, address to, uint256 amount, string memory failure) internal {
        _call(token, abi.encodeCall(IERC20.transfer, (to, amount)), failure);
    }

    /// @notice Pulls `amount` approved units of `token` from `from`, or reverts.
    function pull(address token, address from, uint256 amount) internal {
        _call(
            token,
            abi.encodeCall(IERC20.transferFrom, (from, address(this), amount)),
            "Token transfer failed"
        );
    }

    function _call(address token, bytes memory data, string memory failure) private {
        (bool ok, bytes memory returned) = token.call(data);
        bool paid = ok && token.code.length != 0
            && (returned.length == 0 || abi.decode(returned, (bool)));
        require(paid, failure);
    }
}
