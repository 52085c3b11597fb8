-- snapslot: destroy
-- Destroys one snapshot if it is still the one meant. Both happen within one transaction group,
-- so nobody can come between. Never deferred, never recursive.
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
local snapshot = arguments[1] .. "@" .. arguments[2]
if not zfs.exists(snapshot) then
    error("snapslot: gone " .. snapshot, 0)
end
if zfs.get_prop(snapshot, "guid") ~= number(arguments[3]) then
    error("snapslot: changed " .. snapshot, 0)
end
local errno = zfs.sync.destroy(snapshot)
if errno ~= 0 then
    error("snapslot: errno-" .. errno .. " " .. snapshot, 0)
end
