module squire/smoke

go 1.21
