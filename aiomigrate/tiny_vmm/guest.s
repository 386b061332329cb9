# The guest: 32-bit code at 0x1000, flat segments, no paging, no interrupts.
#
# Pass after pass it goes over the pages from [first] to [end). In each it looks for the stamp of
# the pass before (the number of the pass at the page's beginning, and exclusive-or'ed with the
# page's address at its end), and leaves a new one. Each 16th page is stamped by a device instead.
# After every [batch] pages it prints a counter, sleeps until the next tick, and looks at the power
# button. A page without its stamp is named on the serial line, and is the end.
#
# The bytes in guest.py are made by:
#   as --32 -o guest.o guest.s && ld -m elf_i386 -Ttext=0x1000 --oformat binary -o guest.bin guest.o
#
#   edi  number of the pass        ecx  pages left in this batch
#   esi  the page                  ebp  the counter

        .intel_syntax noprefix
        .code32
        .set    serial, 0x3f8           # out, 8 bits: a character
        .set    stamp, 0x700            # out, 32 bits: the number that the device stamps with
        .set    dma, 0x704              # out, 32 bits: the address of a page that it shall stamp
        .set    power, 0x708            # in, 8 bits: the button; out, 8 bits: what shall happen
        .set    reset, 1
        .set    off, 2
        .set    panic, 3
        .set    first, 0x500            # parameters, 32 bits each
        .set    end, 0x504
        .set    batch, 0x508

start:  xor     ebp, ebp
        xor     edi, edi
        mov     ecx, [batch]
        mov     ebx, offset booted
        call    print

pass:   inc     edi
        mov     eax, edi
        mov     edx, stamp
        out     dx, eax
        mov     esi, [first]

page:   cmp     edi, 1                  # nothing was written before the first pass
        je      write
        mov     eax, [esi]
        mov     ebx, [esi + 4092]
        xor     ebx, esi
        cmp     eax, ebx
        jne     lost                    # no stamp
        inc     eax
        cmp     eax, edi
        jne     old                     # the stamp of another pass

write:  test    esi, 0xf000
        jz      device
        mov     [esi], edi
        mov     eax, edi
        xor     eax, esi
        mov     [esi + 4092], eax
        jmp     next
device: mov     eax, esi
        mov     edx, dma
        out     dx, eax

next:   add     esi, 4096
        dec     ecx
        jnz     more
        call    tick
more:   cmp     esi, [end]
        jb      page
        jmp     pass

tick:   inc     ebp
        mov     eax, ebp
        call    number
        hlt                             # until the timer's next tick
        mov     edx, power
        in      al, dx
        test    al, al
        jz      awake
        out     dx, al                  # do what the button says; off does not come back
awake:  mov     ecx, [batch]
        ret

lost:   mov     ebx, offset is_lost
        jmp     dying
old:    mov     ebx, offset is_old
dying:  call    print
        mov     eax, esi
        call    number
        mov     edx, power
        mov     al, panic
        out     dx, al

# Print the text at ebx, which ends with a zero byte.
print:  mov     edx, serial
again:  mov     al, [ebx]
        test    al, al
        jz      done
        out     dx, al
        inc     ebx
        jmp     again
done:   ret

# Print eax as eight hexadecimal digits, and end the line.
number: mov     ebx, eax
        mov     edx, serial
        mov     ecx, 8
digit:  rol     ebx, 4
        mov     al, bl
        and     al, 15
        add     al, '0'
        cmp     al, '9'
        jbe     show
        add     al, 'a' - '9' - 1
show:   out     dx, al
        loop    digit
        mov     al, '\n'
        out     dx, al
        ret

booted: .asciz  "booted\n"
is_lost: .asciz "lost "
is_old: .asciz  "old "
