-- snapslot: rollback
-- Sets a volume or unmounted file system back to its newest snapshot if that is still the one
-- meant. All happens within one transaction group, so nobody can come between. What is open or
-- mounted is refused with errno 16, where the command `zfs rollback` goes on beneath its users.
-- Arguments: the dataset, the snapshot's part of the name, the guid it must have.

-- Numbers are signed 64-bit integers here and a guid is unsigned: wrapping around while reading
-- gives the same bits.
local function number(text)
    local value = 0
    for i = 1, #text do
        value = value * 10 + (string.byte(text, i) - 48)
    end
    return value
end

local arguments = (...)["argv"]
local dataset = arguments[1]
local snapshot = dataset .. "@" .. arguments[2]
if not zfs.exists(snapshot) then
    error("snapslot: gone " .. snapshot, 0)
end
if zfs.get_prop(snapshot, "guid") ~= number(arguments[3]) then
    error("snapslot: changed " .. snapshot, 0)
end
-- A rollback always goes to the newest snapshot, whichever that is.
local newest = zfs.get_prop(dataset, "prevsnap")
if newest ~= snapshot then
    error("snapslot: newer " .. tostring(newest), 0)
end
local errno = zfs.sync.rollback(dataset)
if errno ~= 0 then
    error("snapslot: errno-" .. errno .. " " .. dataset, 0)
end
