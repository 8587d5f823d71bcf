// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title A small ERC-20 for development chains
/// @notice Pays for ERC-20 sessions and for the host's stake. Anyone may mint, so it is worth
/// nothing: it must never be deployed where a token has value.
contract TestToken {
    /// @notice Display name.
    string public name;
    /// @notice Display symbol.
    string public symbol;
    /// @notice Decimal places of one whole token.
    uint8 public constant decimals = 18;
    /// @notice All units that exist.
    uint256 public totalSupply;
    /// @notice Units that an account holds.
    mapping(address => uint256) public balanceOf;
    /// @notice Units that `spender` may still move for `holder`.
    mapping(address holder => mapping(address spender => uint256)) public allowance;

    event Transfer(address indexed from, address indexed to, uint256 value);
    event Approval(address indexed owner, address indexed spender, uint256 value);

    constructor(string memory name_, string memory symbol_) {
        name = name_;
        symbol = symbol_;
    }

    /// @notice Creates `amount` units for `to`. Open to anyone: a test token.
    function mint(address to, uint256 amount) external {
        totalSupply += amount;
        balanceOf[to] += amount;
        emit Transfer(address(0), to, amount);
    }

    /// @notice Allows `spender` to move up to `amount` units of the caller.
    function approve(address spender, uint256 amount) external returns (bool) {
        allowance[msg.sender][spender] = amount;
        emit Approval(msg.sender, spender, amount);
        return true;
    }

    /// @notice Moves the caller's units.
    function transfer(address to, uint256 amount) external returns (bool) {
        _move(msg.sender, to, amount);
        return true;
    }

    /// @notice Moves units of `from` within the caller's allowance.
    function transferFrom(address from, address to, uint256 amount) external returns (bool) {
        uint256 allowed = allowance[from][msg.sender];
        require(allowed >= amount, "Insufficient allowance");
        if (allowed != type(uint256).max) allowance[from][msg.sender] = allowed - amount;
        _move(from, to, amount);
        return true;
    }

    function _move(address from, address to, uint256 amount) internal virtual {
        require(to != address(0), "Zero address");
        require(balanceOf[from] >= amount, "Insufficient balance");
        balanceOf[from] -= amount;
        balanceOf[to] += amount;
        emit Transfer(from, to, amount);
    }
}
